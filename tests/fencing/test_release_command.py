"""``manage.py dblock release``: an operator releases a lease, and that is logged."""

import io
import logging
import sys

import pytest
from django.core.management import CommandError

from django_dblock import FencedLock, LockLost, fenced_lock
from django_dblock.cli import console
from tests.fencing.helpers import NAME, row
from tests.helpers.commands import run

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_release_shows_and_fences_the_holder(caplog):
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=60) as lock:
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            shown = run("release", NAME, "--yes")
        assert f"{NAME} (slot 0, token {lock.token}) is held by {row().owner}, since" in shown
        assert row().token > lock.token
        with lock.guard():
            pass
    [record] = caplog.records[:1]
    assert record.name == "django_dblock.audit"
    assert (record.lock, record.slot, record.using) == (NAME, 0, "default")
    assert (record.token, record.by) == (lock.token, console.operator_name())
    assert f"token {lock.token} of {record.owner} is fenced off" in record.getMessage()


def test_release_reads_and_releases_with_a_statement_each(statements):
    """Around the first stand three that limit its wait for the table."""
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=60), statements() as sent:
        run("release", NAME, "--yes")
        starts = [query["sql"].split(None, 1)[0] for query in sent]
    assert starts == ["BEGIN", "SELECT", "WITH", "ROLLBACK", "WITH"]


@pytest.mark.parametrize("answer", ["y", "yes", " Y "])
def test_prompt_accepts_yes(answer, says):
    says(answer)
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=60):
        assert "is released" in run("release", NAME)


@pytest.mark.parametrize("answer", ["", "n", "no", "yep"])
def test_other_prompt_answers_decline(answer, says, caplog):
    says(answer)
    with fenced_lock(NAME, ttl=60) as lock:
        with pytest.raises(CommandError, match="Not done"):
            run("release", NAME)
        lock.renew()
    assert caplog.records == []


def test_release_without_a_terminal_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with fenced_lock(NAME, ttl=60) as lock:
        with pytest.raises(CommandError, match="Pass --yes"):
            run("release", NAME)
        lock.renew()


def test_new_holder_after_the_prompt_is_not_released(monkeypatch):
    """The operator said yes to the one that was shown, not to the next."""
    with fenced_lock(NAME, ttl=60) as lock:
        monkeypatch.setattr(
            "django_dblock.cli.release.confirm",
            lambda question: FencedLock.objects.update(token=lock.token + 1),
        )
        with pytest.raises(CommandError, match="has ended, or has another holder by now"):
            run("release", NAME)
        assert row().token == lock.token + 1
        FencedLock.objects.update(token=lock.token)


def test_unknown_name_is_refused():
    with pytest.raises(CommandError, match="There is no lease 'no-such' with slot 0"):
        run("release", "no-such", "--yes")
    with fenced_lock(NAME, ttl=60):
        with pytest.raises(CommandError, match="with slot 1"):
            run("release", NAME, "--slot", "1", "--yes")
        with pytest.raises(CommandError, match="There is no"):
            run("release", NAME, "--using", "other", "--yes")


def test_free_or_delayed_lease_is_refused(observer):
    with fenced_lock(NAME, ttl=60), fenced_lock("kept", ttl=60, hold_at_least=60):
        pass
    with pytest.raises(CommandError, match="no guarded transaction of its last holder"):
        run("release", NAME, "--yes")
    with pytest.raises(CommandError, match=r"its lock_delay or hold_at_least ends in \d+\.\d s"):
        run("release", "kept", "--yes")


def test_slot_option_releases_one_slot():
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=60):
        FencedLock.objects.update(slot=3)
        run("release", NAME, "--slot", "3", "--yes")
        FencedLock.objects.update(slot=0)


def test_name_from_the_list_finds_the_lease():
    with pytest.raises(LockLost), fenced_lock("a:b", b"\x00", ttl=60):
        name = row_name()
        assert "~" in name
        run("release", name, "--yes")


def row_name():
    return FencedLock.objects.get().name


class TestWho:
    """By what the system knows, not by what the environment says."""

    def test_operator_is_the_user(self, monkeypatch):
        import os
        import pwd

        monkeypatch.setenv("LOGNAME", "somebody else")
        monkeypatch.delenv("SUDO_USER", raising=False)
        assert console.operator_name() == pwd.getpwuid(os.getuid()).pw_name

    def test_operator_behind_sudo_is_named(self, monkeypatch):
        monkeypatch.setenv("SUDO_USER", "alice")
        monkeypatch.setattr("os.getuid", lambda: 0)
        assert console.operator_name() == "root (sudo: alice)"

    def test_unnamed_uid_is_shown(self, monkeypatch):
        monkeypatch.setattr("os.getuid", lambda: 987654)
        assert console.operator_name() == "uid 987654"

    def test_operator_without_posix_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pwd", None)
        monkeypatch.setattr("getpass.getuser", lambda: "bob")
        assert console.operator_name() == "bob"
