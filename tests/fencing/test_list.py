"""``manage.py dblock list``: leases beside advisory locks."""

import json

import pytest
from django.core.management import CommandError, call_command
from psycopg import DataError

from django_dblock import FencedLock, advisory_lock, fenced_lock
from django_dblock.sql import inspect as sql
from tests.fencing.helpers import NAME
from tests.helpers.commands import Terminal, run

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def shown(*arguments):
    return json.loads(run("list", "--json", *arguments))


def names(*arguments):
    return [lease["name"] for lease in shown(*arguments)["fenced"]]


def ticket(observer, owner, name=NAME):
    observer.execute(
        "INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)"
        " VALUES (%s, 0, %s, clock_timestamp() + interval '1 min')",
        [name, owner],
    )


def test_table_shows_each_lease(rendering, observer):
    with fenced_lock("kept", ttl=60, hold_at_least=60), fenced_lock("over", ttl=60):
        pass
    with fenced_lock(NAME, ttl=60, lock_delay=5) as lock:
        ticket(observer, "host:1:MainThread")
        [title, kept, held, over] = run("list").splitlines()
    assert title.split() == [
        "lease", "role", "slot", "state", "token", "owner", "age", "free", "in", "renewed",
        "grants", "delay", "waiting",
    ]  # fmt: skip
    assert held.split()[:5] == [NAME, "lock", "0", "held", str(lock.token)]
    assert held.split()[-4:] == ["1", "5.0", "s", "host:1:MainThread"]
    assert kept.split()[:4] == ["kept", "lock", "0", "delayed"]
    assert over.split()[:4] == ["over", "lock", "0", "expired"]


def test_names_are_whole_in_a_pipe_and_shortened_on_a_terminal(observer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    long = f"begin{'-' * 180}end"
    with fenced_lock(long, ttl=60):
        observer.execute("UPDATE django_dblock_fencedlock SET owner = %s", ["h" * 255])
        ticket(observer, "w" * 255, name=long)
        piped = run("list")
        terminal = Terminal()
        call_command("dblock", "list", stdout=terminal, no_color=True)
        [lease] = shown()["fenced"]
    for text in (long, "h" * 255, "w" * 255):
        assert text in piped
        assert text not in terminal.getvalue()
    assert f"begin{'-' * 34}…{'-' * 17}end" in terminal.getvalue()
    assert (lease["name"], lease["owner"], lease["waiting"]) == (long, "h" * 255, ["w" * 255])


def test_each_kind_has_its_table(rendering):
    with fenced_lock(NAME, ttl=60), advisory_lock("a"):
        lines = run("list").splitlines()
        assert [line.partition(" ")[0] for line in lines] == ["lock", "a", "", "lease", NAME]
        assert run("list", "--kind", "advisory").splitlines()[0].startswith("lock")
        assert len(run("list", "--kind", "fenced").splitlines()) == 2


def test_json_has_every_field():
    with fenced_lock(NAME, ttl=60, lock_delay=5, metadata={"job": "sync", "n": [1]}) as lock:
        printed = shown()
    assert printed["schema"] == 1
    [lease] = printed["fenced"]
    assert (lease["name"], lease["slot"], lease["state"]) == (NAME, 0, "held")
    assert (lease["token"], lease["grants"], lease["waiting"]) == (lock.token, 1, [])
    assert lease["metadata"] == {"job": "sync", "n": [1]}
    assert lease["lock_delay"] == 5
    assert 0 < lease["remaining"] <= 60 < lease["free_in"] <= 65
    assert lease.keys() == {
        "name", "slot", "state", "token", "owner", "age", "renewed", "remaining", "lock_delay",
        "free_in", "grants", "metadata", "waiting", "key", "kind", "role",
    }  # fmt: skip


@pytest.mark.parametrize("many", [1, 100, 101, 250])
def test_json_has_one_lock_a_line(observer, many):
    """Rows are encoded in chunks of 100; text that looks like the mark between them is kept."""
    like_the_mark = [", ", "\\u0000", ', "\\u0000", ', {"a": [None, {}, {"name": 1}]}]
    observer.execute(
        "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at, renewed_at,"
        " expires_at, lock_delay, grants, metadata)"
        " SELECT n || %s, 0, n, 'web-2', now(), now(), now() + interval '1 h', interval '0', 1, %s"
        " FROM generate_series(1, %s) AS n",
        [', "\\u0000", ', json.dumps({"texts": like_the_mark}), many],
    )
    text = run("list", "--json", "--kind", "fenced")
    rows = json.loads(text)["fenced"]
    assert len({row["name"] for row in rows}) == many
    assert rows[-1]["metadata"] == {"texts": like_the_mark}
    lines = ",\n    ".join(map(json.dumps, rows))
    assert text == f'{{\n  "schema": 1,\n  "fenced": [\n    {lines}\n  ],\n  "notes": []\n}}\n'


@pytest.mark.parametrize("value", [r"'nul\u0000'::jsonb", r"convert_from('\x00', 'UTF8')"])
def test_postgresql_has_no_text_with_nul(observer, value):
    """So the mark between two rows of the JSON is in no row."""
    with pytest.raises(DataError):
        observer.execute(f"SELECT {value}")


def test_kind_option_lists_one_kind():
    assert shown("--kind", "fenced") == {"schema": 1, "fenced": [], "notes": []}
    assert shown("--kind", "advisory") == {
        "schema": 1, "blockers": [], "advisory": [], "notes": [],
    }  # fmt: skip


def test_one_statement_reads_each_kind(statements):
    """Around the statement stand three that limit its wait for the table."""
    around = ["BEGIN", "SELECT set_config", "ROLLBACK"]
    with fenced_lock(NAME, ttl=60):
        for arguments, tables, others in (
            ((), 3, 1),
            (("--kind", "fenced"), 1, 0),
            (("--kind", "advisory"), 0, 1),
        ):
            with statements() as sent:
                run("list", *arguments)
            counts = {
                start: sum(query["sql"].lstrip().startswith(start) for query in sent)
                for start in around
            }
            assert counts == dict.fromkeys(around, tables)
            assert len(sent) == tables * (len(around) + 1) + others


def test_filters_select_leases(observer, settings):
    settings.DBLOCK_NAMESPACE = "shop"
    with fenced_lock("account", 7, ttl=60), fenced_lock(NAME, ttl=60):
        with fenced_lock("over", ttl=60):
            pass
        assert names() == ["shop::account:7", f"shop::{NAME}", "shop::over"]
        assert names("--held") == ["shop::account:7", f"shop::{NAME}"]
        assert names("--key", "account", "int:7") == ["shop::account:7"]
        assert names("--key", "account", "7") == []
        assert names("--name", "*night*") == [f"shop::{NAME}"]
        assert names("--blocked") == []
        ticket(observer, "somebody", f"shop::{NAME}")
        assert names("--blocked") == [f"shop::{NAME}"]


def test_using_lists_another_alias():
    with fenced_lock(NAME, ttl=60, using="other"):
        assert names() == []
        assert names("--using", "other") == [NAME]


def test_control_characters_are_escaped(rendering, observer):
    with fenced_lock(NAME, ttl=60):
        FencedLock.objects.update(owner="\x1b]0;pwned\x07", name="\x1b[31mred")
        ticket(observer, "\x1b[2J", "\x1b[31mred")
        found = run("list")
        FencedLock.objects.update(name=NAME)
    assert found.replace("\n", "").isprintable()
    assert found.splitlines()[1].startswith("?[31mred")


class TestWithoutTheTable:
    """At three in the morning, on a database that was never migrated, the rest still shows."""

    @pytest.fixture(autouse=True)
    def _missing(self, monkeypatch):
        monkeypatch.setattr(sql, "FENCED_LEASES", "SELECT * FROM no_such_table")

    def test_advisory_locks_are_shown(self, rival):
        rival.execute("SELECT pg_advisory_lock(7)")
        assert run("list").splitlines()[1].startswith("7 ")
        rival.execute("SELECT pg_advisory_unlock(7)")
        assert shown() == {
            "schema": 1, "blockers": [], "advisory": [], "fenced": [], "latches": [],
            "idempotency": [], "notes": [],
        }  # fmt: skip

    def test_kind_fenced_is_an_error(self):
        with pytest.raises(CommandError, match=r"run 'manage.py migrate', or pass --using"):
            run("list", "--kind", "fenced")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [("SELECT no_such_column", "no_such_column"), ("SELECT 1 / 0", "division by zero")],
)
def test_other_server_errors_are_noted(monkeypatch, statement, reason):
    monkeypatch.setattr(sql, "FENCED_LEASES", statement)
    [note] = shown()["notes"]
    assert note.startswith("fenced is not shown: ")
    assert reason in note
    with pytest.raises(CommandError, match=reason):
        run("list", "--kind", "fenced")
