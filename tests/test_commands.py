"""``manage.py dblock list`` and ``dblock key``."""

import json
import os
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from django_dblock import FencedLock, advisory_lock, fenced_lock
from django_dblock.keys import encode, key_id, to_pg_locks
from tests.app.models import Counter
from tests.doctor.helpers import leading
from tests.helpers import servers
from tests.helpers.commands import Terminal, run
from tests.helpers.locks import number, waiter_behind
from tests.helpers.some_keys import ONE

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class TestList:
    def test_empty_list_says_so(self):
        assert run("list") == "Nothing is locked.\n"
        assert json.loads(run("list", "--json")) == {
            "schema": 1, "blockers": [], "advisory": [], "fenced": [], "latches": [],
            "idempotency": [], "notes": [],
        }  # fmt: skip

    def test_table_shows_holders_and_waiters(self, rendering, observer):
        with waiter_behind(observer):
            shown = run("list")
        [title, holder, waiting] = shown.splitlines()
        assert title.split() == [
            "lock", "mode", "state", "pid", "program", "for", "transaction", "user", "client",
            "last", "statement",
        ]  # fmt: skip
        assert holder.startswith("inventory:sku-1  exclusive  held")
        pid = connection.connection.info.backend_pid
        assert waiting.startswith(f"inventory:sku-1  exclusive  waits for {pid}")

    def test_table_fits_the_terminal(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")

        out = Terminal()
        with advisory_lock("inventory", "sku-1"):
            call_command("dblock", "list", stdout=out, no_color=True)
        lines = out.getvalue().splitlines()
        assert len(lines) >= 2
        assert all(len(line) <= 60 for line in lines)

    def test_pipe_shows_whole_names(self, monkeypatch, rendering):
        monkeypatch.setenv("COLUMNS", "60")
        name = "nightly-" + 100 * "1"
        with fenced_lock(name, ttl=30):
            shown = run("list")
        assert name in shown

    def test_json_has_every_field(self):
        with advisory_lock("inventory", "sku-1", shared=True):
            [lock] = json.loads(run("list", "--json"))["advisory"]
        assert lock["name"] == "inventory:sku-1"
        assert lock["key_id"] == number("inventory", "sku-1")
        assert (lock["shared"], lock["granted"], lock["blocked_by"]) == (True, True, [])
        assert lock.keys() == {
            "name", "key_id", "classid", "objid", "shared", "granted", "pid", "blocked_by",
            "waiting", "transaction_age", "application_name", "user", "client", "state", "query",
            "hidden", "backend_start", "place", "waits_for", "last_statement",
        }  # fmt: skip

    def test_filters_select_locks(self, observer):
        with waiter_behind(observer), advisory_lock("account", 7):
            by_key = json.loads(run("list", "--json", "--key", "account", "int:7"))
            blocked = json.loads(run("list", "--json", "--blocked"))
        assert [lock["name"] for lock in by_key["advisory"]] == ["account:7"]
        assert [lock["name"] for lock in blocked["advisory"]] == ["inventory:sku-1"] * 2

    def test_using_lists_another_alias(self):
        with advisory_lock("a", using="other"):
            assert run("list") == "Nothing is locked.\n"
            assert "a  " in run("list", "--using", "other")

    @pytest.mark.parametrize(
        "asked",
        [
            ["list"], ["watch"], ["release", "a", "--yes"], ["terminate", "1", "--yes"], ["purge"],
            ["doctor"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_unknown_alias_is_refused(self, asked):
        with pytest.raises(CommandError) as found:
            run(*asked, "--using", "nowhere")
        assert str(found.value) == (
            "The connection 'nowhere' doesn't exist. DATABASES has: default, other, sqlite."
        )

    def test_name_option_filters_by_pattern(self):
        with advisory_lock("inventory", "sku-1"), advisory_lock("account", 7):
            shown = run("list", "--name", "inv*")
        assert [line.split()[0] for line in shown.splitlines()] == ["lock", "inventory:sku-1"]

    def test_unnamed_lock_matches_no_pattern(self, rival):
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(-5)")
        assert run("list", "--name", "a*") == "Nothing matches.\n"
        rival.execute("ROLLBACK")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--key", ""], "--key is empty: an unset variable?"),
            (["--name", ""], "--name is empty: an unset variable?"),
            (["--limit", "-1"], "--limit -1: 0 rows at least."),
        ],
    )
    @pytest.mark.parametrize("command", ["list", "watch"])
    def test_impossible_filter_is_an_error_and_no_empty_list(self, command, arguments, said):
        with pytest.raises(CommandError) as found:
            run(command, *arguments)
        assert (str(found.value), found.value.returncode) == (said, 1)

    def test_empty_key_can_be_given_with_its_type(self):
        with advisory_lock(""):
            assert "exclusive" in run("list", "--key", "str:")

    def test_unnamed_and_two_part_locks_are_listed(self, rival, rendering):
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(-5), pg_advisory_xact_lock(1, 2)")
        shown = run("list")
        rival.execute("ROLLBACK")
        assert "\n-5 " in shown
        assert "\n(1, 2) " in shown

    def test_control_characters_become_question_marks(self, rival, rendering):
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
        rival.execute("SELECT '\x1b]0;pwned\x07\x1b[31mred'")
        shown = run("list")
        rival.execute("ROLLBACK")
        assert "SELECT '?]0;pwned??[31mred'" in shown
        assert shown.replace("\n", "").isprintable()

    def test_rich_markup_is_not_rendered(self, rendering, rival, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")
        out = Terminal()
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
        rival.execute("SELECT '[bold]%s[/bold]'")
        call_command("dblock", "list", stdout=out, no_color=True)
        rival.execute("ROLLBACK")
        assert "SELECT '[bold]%s[/bold]'" in out.getvalue()

    def test_emoji_codes_are_not_rendered(self, rendering, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        out = Terminal()
        with advisory_lock("a:lock:b"):
            call_command("dblock", "list", stdout=out, no_color=True)
        assert "a:lock:b" in out.getvalue()

    def test_large_lists_are_plain_text(self, rival, monkeypatch):
        monkeypatch.setenv("COLUMNS", "20")
        out = Terminal()
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 1001) AS n")
        call_command("dblock", "list", stdout=out, no_color=True)
        rival.execute("ROLLBACK")
        assert len(out.getvalue().splitlines()) == 1002

    @pytest.mark.parametrize("arguments", [(), ("--json",), ("--blocked",), ("--held",)])
    def test_each_kind_is_one_statement(self, arguments, statements, rival, observer):
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 300) AS n")
        observer.execute(
            "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at,"
            " renewed_at, expires_at, lock_delay, grants, metadata) SELECT 'lease:' || n, 0, n,"
            " 'web', now(), now(), now() + interval '1 h', interval '0', 1, '{}'"
            " FROM generate_series(1, 300) AS n"
        )
        with statements() as sent:
            shown = run("list", *arguments)
        rival.execute("ROLLBACK")
        read = [query for query in sent if "django_dblock_" in query["sql"]]
        assert len(read) == (2 if "--blocked" in arguments else 3)
        limits = 3 * len(read)  # BEGIN, lock_timeout, ROLLBACK
        assert len(sent) == 1 + len(read) + limits
        times = 2 if "--json" in arguments else 1  # the name in the table, and the key
        assert shown.count("lease:") == (0 if "--blocked" in arguments else 300 * times)

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    def test_alias_that_is_down_hides_no_other_locks(self, arguments, settings):
        settings.DATABASE_ROUTERS = [LeasesElsewhere()]
        with leading("other", PORT=servers.free_port()), advisory_lock("inventory", "sku-1"):
            shown = run("list", *arguments)
        assert "inventory:sku-1" in shown
        assert "fenced is not shown: connection failed" in shown

    def test_policy_that_fails_hides_no_other_locks(self, observer, plain_role):
        table = "django_dblock_fencedlock"
        observer.execute(
            f"GRANT SELECT ON {table}, django_dblock_fencedticket TO {plain_role};"
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
            f"CREATE POLICY tenant ON {table} USING (current_setting('app.tenant') = name)"
        )
        try:
            with advisory_lock("inventory", "sku-1"):
                shown = run("list")
        finally:
            connection.close()
            observer.execute(
                f"DROP POLICY tenant ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;"
                f"DROP OWNED BY {plain_role}"
            )
        assert "inventory:sku-1" in shown
        assert "fenced is not shown: unrecognized configuration parameter" in shown


class LeasesElsewhere:
    def db_for_write(self, model, **hints):
        return "other" if model is FencedLock else None


class TestKey:
    def test_key_prints_the_number_and_its_halves(self):
        classid, objid = to_pg_locks(number("inventory", "sku-1"))
        shown = run("key", "inventory", "sku-1")
        assert f"key_id   {number('inventory', 'sku-1')}\n" in shown
        assert f"classid = {classid} AND objid = {objid};" in shown
        assert json.loads(run("key", "inventory", "sku-1", "--json")) == {
            "name": "inventory:sku-1",
            "key_id": number("inventory", "sku-1"),
            "classid": classid,
            "objid": objid,
            "objsubid": 1,
        }

    def test_printed_query_finds_the_lock(self, observer):
        query = run("key", "a").splitlines()[-1]
        assert observer.execute(query).fetchall() == []
        with advisory_lock("a"):
            assert len(observer.execute(query).fetchall()) == 1

    def test_namespace_setting_changes_the_number(self, settings):
        settings.DBLOCK_NAMESPACE = "shop"
        shown = json.loads(run("key", "a", "--json"))
        assert shown["key_id"] == key_id(encode(("a",)), "shop")

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("7", "7"),
            ("int:7", 7),
            ("int:-7", -7),
            ("bool:true", True),
            ("bool:False", False),
            ("bytes:00ff", b"\x00\xff"),
            (f"uuid:{ONE}", ONE),
            ("str:int:7", "int:7"),
            ("sku:7", "sku:7"),
        ],
    )
    def test_typed_parts_are_parsed(self, text, part):
        assert json.loads(run("key", text, "--json"))["key_id"] == number(part)

    def test_date_and_decimal_parts_are_parsed(self):
        from datetime import UTC, date, datetime
        from decimal import Decimal

        for text, part in {
            "date:2026-01-31": date(2026, 1, 31),
            "datetime:2026-01-31T12:00:00+00:00": datetime(2026, 1, 31, 12, tzinfo=UTC),
            "decimal:9.90": Decimal("9.9"),
        }.items():
            assert json.loads(run("key", text, "--json"))["key_id"] == number(part)

    def test_model_part_is_the_instance(self):
        counter = Counter.objects.create(name="a")
        shown = json.loads(run("key", "stock", f"model:app.Counter:{counter.pk}", "--json"))
        assert shown["key_id"] == number("stock", counter)

    @pytest.mark.parametrize(
        "text",
        ["int:x", "bool:maybe", "bytes:0", "uuid:1", "decimal:x", "date:31.1.", "datetime:noon",
         "model:app.Nothing:1", "model:app.Counter:1", "model:app.Document:1", "model:x"],
    )  # fmt: skip
    def test_wrong_typed_parts_are_refused(self, text):
        with pytest.raises(CommandError, match=r"is not a \w+: .*a part is text"):
            run("key", text)

    def test_impossible_keys_are_refused(self):
        with pytest.raises(CommandError, match="not a finite number"):
            run("key", "decimal:NaN")
        with pytest.raises(CommandError, match="not a finite number"):
            run("list", "--key", "decimal:NaN")


def test_impossible_namespace_is_a_wrong_option():
    with pytest.raises(CommandError, match="argument --namespace: A namespace has at most 100"):
        run("list", "--namespace", "x" * 101)


def test_missing_subcommand_is_an_error():
    with pytest.raises(CommandError, match="subcommand"):
        run()


def test_help_names_the_subcommands():
    done = subprocess.run(
        [sys.executable, "-m", "django", "dblock", "--help"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "show what is locked" in " ".join(done.stdout.split())
    assert "run a command while holding a lock" in " ".join(done.stdout.split())
    assert "print the number that PostgreSQL locks" in " ".join(done.stdout.split())
