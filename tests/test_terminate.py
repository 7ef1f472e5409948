"""``manage.py dblock terminate``: an operator ends a backend, and that is logged."""

import io
import logging
import sys
from datetime import timedelta

import pytest
from django.core.management import CommandError

from django_dblock.cli import console, terminate
from django_dblock.exceptions import TerminationRefused
from tests.helpers import observe
from tests.helpers.commands import run
from tests.helpers.operating import LOCK, is_alive, is_gone, pid_of

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def test_terminate_shows_and_ends_the_backend(holding, observer, caplog):
    holding.execute("SELECT pg_advisory_lock(2, 3)")
    pid = pid_of(holding)
    with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
        title, first, second, told = run("terminate", str(pid), "--yes").splitlines()
    assert title.split()[:4] == ["lock", "mode", "state", "pid"]
    assert first.split()[:4] == ["1", "exclusive", "held", str(pid)]
    assert second.startswith("(2, 3)")
    assert told.startswith(f"Backend {pid} is being ended: its transaction is rolled back")
    observe.until(lambda: is_gone(observer, pid), "it is gone")
    [record] = caplog.records
    assert (record.pid, record.by, record.using) == (pid, console.operator_name(), "default")


def test_terminate_is_two_statements_the_second_in_a_block(holding, statements):
    with statements() as sent:
        run("terminate", str(pid_of(holding)), "--yes")
    assert [query["sql"].split()[0] for query in sent] == ["WITH", "BEGIN", "SELECT", "COMMIT"]


def test_prompt_accepts_yes(holding, observer, says):
    says("y")
    run("terminate", str(pid_of(holding)))
    observe.until(lambda: is_gone(observer, pid_of(holding)), "it is gone")


@pytest.mark.parametrize("answer", ["", "n", "yep"])
def test_other_prompt_answers_decline(answer, holding, says, caplog):
    says(answer)
    with pytest.raises(CommandError, match="Not done"):
        run("terminate", str(pid_of(holding)))
    assert is_alive(holding)
    assert caplog.records == []


def test_terminate_without_a_terminal_is_refused(holding, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CommandError, match="Pass --yes"):
        run("terminate", str(pid_of(holding)))
    assert is_alive(holding)


def test_backend_that_released_during_the_prompt_stays(holding, monkeypatch):
    monkeypatch.setattr(
        "django_dblock.cli.terminate.confirm",
        lambda question: holding.execute("SELECT pg_advisory_unlock(1)"),
    )
    with pytest.raises(CommandError, match="has already ended, or holds no lock any more"):
        run("terminate", str(pid_of(holding)))
    assert is_alive(holding)


def test_recycled_pid_is_not_ended(holding, monkeypatch):
    """The operator said yes to the one that was shown."""
    from dataclasses import replace

    shown = terminate.lock_waits

    def earlier(using):
        waits = shown(using)
        locks = [
            replace(lock, backend_start=lock.backend_start - timedelta(microseconds=1))
            for lock in waits.locks
        ]
        return replace(waits, locks=locks)

    monkeypatch.setattr(terminate, "lock_waits", earlier)
    with pytest.raises(CommandError, match="Nothing was done"):
        run("terminate", str(pid_of(holding)), "--yes")
    assert is_alive(holding)


@pytest.mark.parametrize("pid", ["0", "2147483648"])
def test_pid_without_a_lock_is_refused(pid, rival):
    for each in (pid, str(pid_of(rival))):
        with pytest.raises(CommandError, match="neither holds nor waits for an advisory lock"):
            run("terminate", each, "--yes")
    assert is_alive(rival)


def test_backend_of_another_database_is_refused(holding):
    with pytest.raises(CommandError, match="neither holds nor waits for an advisory lock"):
        run("terminate", str(pid_of(holding)), "--yes", "--using", "other")
    assert is_alive(holding)


REFUSED = "was not ended: (permission denied|must be a superuser)"
"""In the words of PostgreSQL 16 and later, and of 15."""


class TestAPlainRole:
    def test_backend_with_hidden_start_is_not_ended(self, holding, plain_role):
        with pytest.raises(CommandError, match="this role may not see when its connection began"):
            run("terminate", str(pid_of(holding)), "--yes")
        assert is_alive(holding)

    def test_missing_right_is_a_clear_error(self, holding, observer, plain_role):
        observer.execute("GRANT pg_read_all_stats TO dblock_plain")
        with pytest.raises(CommandError, match=REFUSED) as raised:
            run("terminate", str(pid_of(holding)), "--yes")
        assert isinstance(raised.value.__cause__, TerminationRefused)
        assert is_alive(holding)

    def test_backend_of_the_same_role_is_ended(self, connect, observer, plain_role):
        own = connect(user=plain_role)
        own.execute(LOCK)
        run("terminate", str(pid_of(own)), "--yes")
        observe.until(lambda: is_gone(observer, pid_of(own)), "it is gone")
        own.close()
