"""``manage.py dblock``: the requests beside the locks in list, release and purge."""

import json
import logging
import sys
from contextlib import contextmanager

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_dblock import IdempotencyKey, advisory_lock, fenced_lock
from django_dblock.cli import console
from django_dblock.sql import (
    fencing,
    idempotency_operations,
)
from tests.helpers.commands import Terminal, run
from tests.idempotency.rows import HOUR, abandoned, make, over, unfinished, values

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def shown(*arguments):
    return json.loads(run("list", "--json", *arguments))["idempotency"]


def keys(*arguments):
    return [request["key"] for request in shown(*arguments)]


class TestList:
    def test_table_shows_each_request(self, rendering):
        row = abandoned(expires_at=None, steps={"mail": {}, "charge": {}})
        live = unfinished("live-key")
        make("done-key")
        [title, first, second] = run("list", "--kind", "idempotency").splitlines()
        assert title.split() == [
            "request", "state", "scope", "key", "method", "path", "token", "owner", "age", "lease",
            "expires", "in", "steps",
        ]  # fmt: skip
        assert first.split()[:8] == [
            str(row.pk), "abandoned", "user:7", "3f1c0a…", "POST", "/pay/", "3", row.owner,
        ]  # fmt: skip
        assert first.endswith("charge, mail")
        assert second.split()[:2] == [str(live.pk), "leased"]
        assert "3f1c0a52" not in first

    def test_json_has_every_field(self):
        row = abandoned(expires_at=None, steps={"charge": {"result": "secret"}})
        [request] = shown()
        assert request.pop("age") > 3600
        assert request.pop("remaining") < -3600
        assert request == {
            "id": row.pk, "state": "abandoned", "scope": "user:7", "key": "3f1c0a…",
            "method": "POST", "path": "/pay/", "owner": row.owner, "token": 3, "expires_in": None,
            "steps": ["charge"], "namespace": "",
        }  # fmt: skip

    def test_each_kind_has_its_table(self, rendering):
        abandoned()
        with fenced_lock("a", ttl=60), advisory_lock("a"):
            titles = [block.split()[0] for block in run("list").split("\n\n")]
        assert titles == ["lock", "lease", "request"]

    def test_filters_select_requests(self):
        abandoned("lost-key")
        unfinished("live-key", scope="scope:shop")
        unfinished("free-key", locked_until=None)
        assert keys() == ["free…", "lost…", "live…"]
        assert keys("--held") == ["live…"]
        assert keys("--name", "user:*") == ["free…", "lost…"]
        assert keys("--blocked") == []
        assert keys("--key", "a") == []

    def test_list_is_one_statement(self, statements):
        with statements() as sent:
            run("list", "--kind", "idempotency")
        assert len([query for query in sent if "idempotencykey" in query["sql"]]) == 1
        assert len(sent) == 4  # with BEGIN, lock_timeout and ROLLBACK

    def test_using_lists_another_alias(self):
        abandoned()
        assert keys("--using", "other") == []

    def test_control_characters_are_escaped(self, rendering):
        abandoned(
            "\x1b[2J-key", "\x1b[31mred", method="\x07", path="\x1b]0;", owner="\x1b[1m",
            steps={"\x1b[3m": {}},
        )  # fmt: skip
        assert run("list", "--kind", "idempotency").replace("\n", "").isprintable()

    def test_missing_table_hides_only_its_kind(self, monkeypatch):
        monkeypatch.setattr(idempotency_operations, "UNFINISHED", "SELECT * FROM no_such_table")
        with advisory_lock("a"):
            assert len(run("list").splitlines()) == 2
        with pytest.raises(
            CommandError, match=r"'idempotency' can't be shown: .*run 'manage.py migrate'"
        ):
            run("list", "--kind", "idempotency")


@contextmanager
def nothing_is_done(caplog):
    before = list(IdempotencyKey.objects.values_list("pk", "token", "completed_at"))
    with pytest.raises(CommandError) as caught:
        yield caught
    assert list(IdempotencyKey.objects.values_list("pk", "token", "completed_at")) == before
    assert caplog.records == []


class TestRelease:
    def test_retry_frees_the_request(self, caplog):
        row = abandoned(expires_at=None, steps={"charge": {"result": "secret"}})
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            said = run("release", "--request", str(row.pk), "--retry", "--yes")
        first, second = said.splitlines()
        assert first.startswith(
            f"Request {row.pk}: POST /pay/ of user:7, key 3f1c0a…, is abandoned"
        )
        assert first.endswith(f"Last worker: {row.owner}, token 3. Steps recorded: charge.")
        assert second == f"Request {row.pk} is free: the next retry resumes after its last step."
        row.refresh_from_db()
        assert (row.token > 3, row.locked_until, row.completed_at) == (True, None, None)
        [record] = caplog.records
        assert record.name == "django_dblock.audit"
        assert (record.by, record.request_id, record.using) == (
            console.operator_name(),
            row.pk,
            "default",
        )
        assert (record.scope, record.key, record.token) == ("user:7", "3f1c0a…", 3)
        assert (record.owner, record.outcome, record.status_code) == (row.owner, "retry", None)
        assert "freed it for a retry; token 3" in record.getMessage()
        assert "3f1c0a52" not in said + record.getMessage()

    def test_answer_stores_a_response(self, caplog, tmp_path):
        row = unfinished(locked_until=None, owner="")
        body = tmp_path / "answer.html"
        body.write_bytes(b"<p>refunded</p>")
        said = run(
            "release", "--request", str(row.pk), "--answer", "409", "--body-file", str(body),
            "--content-type", "text/html", "--yes",
        )  # fmt: skip
        assert "is free" in said
        assert "Last worker: none" in said
        assert said.endswith("has a response: every retry gets 409.\n")
        row.refresh_from_db()
        assert (row.status_code, row.headers) == (409, {"Content-Type": "text/html"})
        assert bytes(row.body) == b"<p>refunded</p>"
        [record] = caplog.records
        assert (record.outcome, record.status_code) == ("done", 409)
        assert "responded to it with 409" in record.getMessage()

    def test_answer_without_a_body_stores_an_empty_one(self):
        row = abandoned()
        run("release", "--request", str(row.pk), "--answer", "204", "--yes")
        row.refresh_from_db()
        assert (row.status_code, bytes(row.body), row.headers) == (204, b"", {})

    def test_run_once_work_can_be_resolved(self):
        row = abandoned(method="", path="", scope="once")
        assert "run_once of once" in run("release", "--request", str(row.pk), "--retry", "--yes")

    def test_prompt_accepts_yes(self, says):
        row = abandoned()
        says("y")
        assert "is free" in run("release", "--request", str(row.pk), "--retry")

    @pytest.mark.parametrize("answer", ["", "n", "yep"])
    def test_other_prompt_answers_decline(self, answer, says, caplog):
        row = abandoned()
        says(answer)
        with nothing_is_done(caplog) as caught:
            run("release", "--request", str(row.pk), "--retry")
        assert "Not done" in str(caught.value)

    def test_running_or_finished_requests_are_refused(self, caplog):
        done, live = make("done-key"), unfinished("live-key")
        for arguments, message in {
            ("--request", str(live.pk), "--retry"): "is running: its lease",
            ("--request", str(done.pk), "--retry"): "There is no request",
            ("--request", "0", "--retry"): "There is no request 0",
        }.items():
            with nothing_is_done(caplog) as caught:
                run("release", *arguments, "--yes")
            assert message in str(caught.value)

    def test_takeover_during_the_prompt_is_an_error(self, monkeypatch, caplog):
        row = abandoned()
        monkeypatch.setattr(
            "django_dblock.cli.release.confirm",
            lambda question: IdempotencyKey.objects.update(token=4),
        )
        with pytest.raises(CommandError, match="taken over meanwhile"):
            run("release", "--request", str(row.pk), "--retry")
        assert IdempotencyKey.objects.get().token == 4
        assert caplog.records == []

    def test_request_deleted_during_the_prompt_is_an_error(self, monkeypatch):
        row = abandoned()
        monkeypatch.setattr(
            "django_dblock.cli.release.confirm",
            lambda question: IdempotencyKey.objects.all().delete(),
        )
        with pytest.raises(CommandError, match="no longer exists, or has ended"):
            run("release", "--request", str(row.pk), "--retry")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "Give the NAME of a lease, or --request"),
            (("name", "--request", "1", "--retry"), "Give the NAME of a lease, or --request"),
            (("name", "--retry"), "--retry: only with --request"),
            (("name", "--answer", "200", "--body-file", "x"), "--answer and --body-file: only"),
            (("--request", "1"), "--retry, or --answer STATUS"),
            (("--request", "1", "--body-file", "x"), "--retry, or --answer STATUS"),
            (("--request", "1", "--retry", "--content-type", "x"), "--retry takes no response"),
            (("--request", "1", "--retry", "--slot", "2"), "--slot belongs to a lease"),
            (("--request", "1", "--answer", "200", "--body-file", "/no/such"), "can't be read"),
        ],
    )
    def test_contradicting_options_are_refused(self, arguments, message, statements):
        with statements() as sent, pytest.raises(CommandError) as caught:
            run("release", *arguments, "--yes")
        assert message in str(caught.value)
        assert len(sent) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--answer", "17"), "from 200 to 599"),
            (("--answer", "200", "--content-type", "a\x07", "--body-file"), "no header may have"),
        ],
    )
    def test_impossible_responses_are_refused(self, arguments, message, tmp_path, caplog):
        row = abandoned()
        body = tmp_path / "body"
        body.write_bytes(b"{}")
        with nothing_is_done(caplog) as caught:
            run(
                "release", "--request", str(row.pk), *arguments,
                *([str(body)] if arguments[-1] == "--body-file" else []), "--yes",
            )  # fmt: skip
        assert message in str(caught.value)

    def test_using_resolves_on_another_alias(self):
        IdempotencyKey.objects.using("other").create(
            **values(completed_at=None, locked_until=None, token=3), pk=99
        )
        run("release", "--request", "99", "--retry", "--yes", "--using", "other")
        assert IdempotencyKey.objects.using("other").get().token > 3


@pytest.fixture
def expired():
    """Three that are over, and three that must stay."""
    for key in "abc":
        make(f"{key}-key", expires_at=over())
    make("kept-key")
    unfinished("live-key", expires_at=over())
    abandoned("waits-key", expires_at=None)


class TestPurge:
    def test_without_kind_every_kind_is_purged(self, expired, observer):
        with fenced_lock("old", ttl=60):
            pass
        observer.execute(
            "UPDATE django_dblock_fencedlock SET expires_at = expires_at - interval '31 days',"
            " token = token - 31 * 86400000::bigint"
        )
        assert run("purge") == (
            "1 of 1 rows of fenced locks removed.\n0 of 0 rows of latches removed.\n"
            "3 of 3 expired idempotency keys removed.\n"
        )
        assert IdempotencyKey.objects.count() == 3

    def test_kind_option_purges_one_kind(self, expired):
        assert run("purge", "--kind", "fenced") == "0 of 0 rows of fenced locks removed.\n"
        assert run("purge", "--kind", "idempotency") == "3 of 3 expired idempotency keys removed.\n"

    def test_dry_run_only_counts(self, expired, statements):
        with statements() as sent:
            said = run("purge", "--kind", "idempotency", "--dry-run")
        assert said == "3 expired idempotency keys would be removed.\n"
        assert len(sent) == 2, "the clock, and the count"
        assert IdempotencyKey.objects.count() == 6

    def test_json_has_the_counts(self, expired):
        assert json.loads(run("purge", "--dry-run", "--json")) == {
            "fenced": {"idle": 0, "removed": 0}, "latches": {"idle": 0, "removed": 0},
            "idempotency": {"expired": 3, "removed": 0},
        }  # fmt: skip
        assert json.loads(run("purge", "--kind", "idempotency", "--json")) == {
            "idempotency": {"expired": 3, "removed": 3}
        }

    def test_purge_commits_in_batches(self, expired, statements):
        """Clock and count; clock, two rows, then one."""
        with statements() as sent:
            run("purge", "--kind", "idempotency", "--batch", "2")
        assert len(sent) == 5

    def test_keep_abandoned_keeps_abandoned_requests(self):
        abandoned("lost-key", expires_at=over())
        arguments = ("purge", "--kind", "idempotency", "--keep-abandoned")
        assert run(*arguments).startswith("0 of 0")
        assert run(*arguments[:-1]).startswith("1 of 1")

    def test_terminal_shows_progress(self, expired, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        out = Terminal()
        call_command("dblock", "purge", "--kind", "idempotency", "--batch", "2", stdout=out)
        assert out.getvalue() == "\r2 of 3\r3 of 3\n3 of 3 expired idempotency keys removed.\n"

    def test_terminal_with_rich_shows_a_bar_for_each_kind(self, expired, capsys, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        out = Terminal()
        call_command("dblock", "purge", stdout=out, no_color=True)
        assert out.getvalue().splitlines()[-1] == "3 of 3 expired idempotency keys removed."
        bars = capsys.readouterr().err
        assert "rows of fenced locks" in bars
        assert "expired idempotency keys" in bars

    def test_using_purges_another_alias(self):
        IdempotencyKey.objects.using("other").create(**values(expires_at=timezone.now() - HOUR))
        assert "1 of 1" in run("purge", "--kind", "idempotency", "--using", "other")

    @pytest.mark.parametrize(
        ("kind", "module", "statement"),
        [
            ("fenced", fencing, "COUNT_IDLE"),
            ("idempotency", idempotency_operations, "COUNT_EXPIRED"),
        ],
    )
    def test_missing_table_skips_only_its_kind(self, kind, module, statement, monkeypatch):
        monkeypatch.setattr(module, statement, "SELECT * FROM no_such_table")
        assert len(run("purge").splitlines()) == 2
        with pytest.raises(
            CommandError, match=f"{kind!r} can't be purged: .*run 'manage.py migrate'"
        ):
            run("purge", "--kind", kind)
