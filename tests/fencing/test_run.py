"""``manage.py dblock run``, called in this process: what it returns, says, sends and leaves."""

import os
import signal
import sys
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from django_dblock import FencedLock, fenced_lock
from django_dblock.cli.supervised_process import Job
from django_dblock.fencing import store as table
from django_dblock.fencing.deadline import now
from tests.fencing.commands import printed, python, refusal, run
from tests.fencing.helpers import NAME, is_expired, row
from tests.helpers import observe
from tests.monitor import scene

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class TestExitStatus:
    @pytest.mark.parametrize("status", [0, 1, 7, 255])
    def test_status_is_the_commands(self, status, observer):
        assert run(command=("sh", "-c", f"exit {status}")) == status
        assert is_expired(observer), "given back"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
    def test_signalled_command_is_status_128_plus_n(self, number, observer):
        assert run(command=("sh", "-c", f"kill -{int(number)} $$")) == 128 + number
        assert is_expired(observer)

    def test_busy_lock_is_status_75(self):
        with fenced_lock(NAME, ttl=30) as lock:
            error = refusal(command=("false",))
            assert error.returncode == 75
            assert f"token {lock.token}" in str(error)

    def test_control_characters_of_the_holder_are_escaped(self, observer):
        """Whoever writes the table must not write to the terminal of the person on call."""
        scene.lease(observer, NAME, owner="\x1b]0;pwned\x07")
        assert "]0;pwned" in str(error := refusal())
        assert str(error).isprintable()

    def test_conflict_exit_code_can_be_chosen(self):
        with fenced_lock(NAME, ttl=30):
            assert refusal("--exit-code", "0").returncode == 0
            assert run("--exit-code", "3", "--quiet") == 3
            assert run("--exit-code", "0", "--quiet") == 0

    def test_unknown_command_is_status_127(self, observer):
        error = refusal(command=("no-such-command",))
        assert error.returncode == 127
        assert "no-such-command: there is no such command" in str(error)
        assert is_expired(observer)

    def test_unexecutable_file_is_status_126(self, observer, tmp_path):
        error = refusal(command=(str(tmp_path),))
        assert error.returncode == 126
        assert is_expired(observer)

    @pytest.mark.parametrize(
        "arguments",
        [("--ttl", "0"), ("--ttl", "nan"), ("--timeout", "-1"), ("--lock", "int:x"),
         ("--lock", "decimal:NaN"), ("--lock-delay", "-1"), ("--hold-at-least", "nan")],
    )  # fmt: skip
    def test_wrong_usage_is_status_2_before_sql(self, arguments, statements):
        with statements() as sent:
            assert refusal(*arguments).returncode == 2
        assert len(sent) == 0

    def test_missing_command_is_status_2(self):
        with pytest.raises(CommandError, match="COMMAND"):
            call_command("dblock", "run", "--lock", NAME)

    def test_timeout_is_a_number_or_forever(self):
        with pytest.raises(CommandError, match="'long' is neither a number nor 'forever'"):
            run("--timeout", "long")
        assert run("--timeout", "forever") == 0

    @pytest.mark.parametrize("alias", ["sqlite", "no-such-alias"])
    def test_database_error_is_status_125(self, alias):
        error = refusal("--using", alias)
        assert error.returncode == 125
        assert "Nothing was run" in str(error)

    def test_missing_process_groups_are_status_125(self, monkeypatch):
        monkeypatch.delattr(os, "killpg")
        assert refusal().returncode == 125

    def test_failed_watchdog_is_status_125(self, monkeypatch, tmp_path, observer):
        """A command that nobody would end in time is not started."""
        monkeypatch.setattr("sys.executable", "/bin/false")
        mark = tmp_path / "mark"
        assert refusal(command=("touch", str(mark))).returncode == 125
        assert not mark.exists()
        assert is_expired(observer)

    def test_release_that_fails_does_not_hide_the_commands_status(self, monkeypatch, caplog):
        def fail(*_, **__):
            raise OperationalError("the server is gone")

        monkeypatch.setattr(table, "release", fail)
        assert run(command=("sh", "-c", "exit 7")) == 7
        assert "not released; it expires: the server is gone" in caplog.text

    def test_loss_noticed_at_the_end_is_status_79(self, monkeypatch):
        """The command ended by itself, but somebody else may have been at work beside it."""
        monkeypatch.setattr(table, "release", lambda *_, **__: False)
        error = refusal(command=("sh", "-c", "exit 3"))
        assert error.returncode == 79
        assert "The command ended with exit status 3" in str(error)


class TestWhatTheCommandGets:
    def test_environment_has_token_and_name(self, capfd):
        source = "import os; print(os.environ['DBLOCK_LOCK'], os.environ['DBLOCK_TOKEN'])"
        assert run(command=python(source)) == 0
        assert printed(capfd) == f"{NAME} {row().token}\n"

    def test_environment_name_is_the_rows_name(self, capfd, settings):
        settings.DBLOCK_NAMESPACE = "shop"
        call_command(
            "dblock", "run", "--lock", "account", "int:7", "--", "sh", "-c", "echo $DBLOCK_LOCK"
        )
        assert printed(capfd) == "shop::account:7\n"
        assert FencedLock.objects.get().name == "shop::account:7"

    def test_arguments_pass_through_no_shell(self, capfd):
        words = ["$HOME", "*", "--ttl", "--", "a b", ";", "--settings=none"]
        assert run(command=("printf", "%s|", *words)) == 0
        assert printed(capfd) == "".join(f"{word}|" for word in words)

    def test_command_inherits_only_standard_files(self, capfd):
        connection.ensure_connection()
        source = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
        assert run(command=python(source)) == 0
        assert printed(capfd) == "[0, 1, 2]\n"

    def test_connection_is_closed_while_the_command_runs(self, capfd, observer):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            [ours] = cursor.fetchone()
        source = f"""
import psycopg
print(psycopg.connect({observer.info.dsn!r}).execute(
    "SELECT count(*) FROM pg_stat_activity WHERE pid = {ours}"
).fetchone())
"""
        assert run(command=python(source)) == 0
        assert printed(capfd) == "(0,)\n"

    def test_command_has_its_process_group_and_default_signals(self, capfd):
        source = """
import os, signal
print(os.getpgrp() == os.getppid(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
      signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.pthread_sigmask(0, []))
"""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert run(command=python(source)) == 0
        finally:
            signal.signal(signal.SIGHUP, before)
        assert printed(capfd) == "False True True set()\n", "nohup stays nohup"


class TestBudget:
    def test_acquire_and_release_are_one_statement_each(self, statements):
        with statements() as sent:
            assert run() == 0
        assert len(sent) == 2

    def test_busy_lock_is_one_statement_more_after_a_grant(self, statements):
        with fenced_lock(NAME, ttl=30), statements() as sent:
            assert refusal().returncode == 75
        assert len(sent) == 2, "one more, because this process was granted it before"


class TestOptions:
    def test_hold_at_least_keeps_the_lock(self):
        assert run("--hold-at-least", "60") == 0
        assert refusal().returncode == 75

    def test_lock_delay_is_passed_on(self, observer, capfd):
        source = f"""
import psycopg
print(psycopg.connect({observer.info.dsn!r}).execute(
    "SELECT lock_delay::text FROM django_dblock_fencedlock"
).fetchall())
"""
        assert run("--lock-delay", "60", command=python(source)) == 0
        assert printed(capfd) == "[('00:01:00',)]\n"
        assert run() == 0, "it was released, so there is no delay"

    def test_using_locks_on_another_alias(self):
        assert run("--using", "other") == 0
        assert not FencedLock.objects.exists()
        assert FencedLock.objects.using("other").get().name == NAME


def test_signal_handlers_are_restored():
    every = range(1, signal.NSIG)
    before = [signal.getsignal(number) for number in every]
    assert run() == 0
    assert [signal.getsignal(number) for number in every] == before


def test_foreign_c_signal_handler_is_tolerated(monkeypatch):
    """Of a handler that C code has set Python only knows that it is none of its own."""
    plain = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGUSR1 else plain(n))
    assert run() == 0
    assert plain(signal.SIGUSR1) == signal.SIG_DFL


def test_signal_ends_the_wait_for_the_lock(monkeypatch):
    def ask(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return table.Refusal(1.0, 1, "somebody")

    monkeypatch.setattr(table, "acquire", ask)
    assert run("--timeout", "forever") == 128 + signal.SIGTERM


class Finalized:
    """Its finalizer runs this function; Python swallows what the function raises."""

    def __init__(self, function):
        self.function = function

    def __del__(self):
        self.function()


class TestSwallowedInterrupt:
    """A signal handler raises KeyboardInterrupt where Python swallows it."""

    @staticmethod
    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)

    def test_swallowed_interrupt_ends_the_wait_for_the_lock(self, monkeypatch):
        signals = [self.terminate]

        def ask(*_):
            if signals:
                Finalized(signals.pop())
            return table.Refusal(1.0, 1, "somebody")

        monkeypatch.setattr(table, "acquire", ask)
        assert run("--timeout", "forever") == 128 + signal.SIGTERM

    def test_swallowed_interrupt_keeps_the_command_from_running(
        self, monkeypatch, observer, tmp_path
    ):
        acquire = table.acquire

        def take(*arguments):
            granted = acquire(*arguments)
            Finalized(self.terminate)
            return granted

        monkeypatch.setattr(table, "acquire", take)
        monkeypatch.setattr("django_dblock.cli.supervisor._AGAIN", 60)  # no second attempt
        ran = tmp_path / "ran"
        assert run(command=("touch", str(ran))) == 128 + signal.SIGTERM
        assert not ran.exists()
        assert is_expired(observer)
        assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())

    def test_it_goes_before_an_error(self, monkeypatch):
        """Else 'dblock lead' would campaign again after it could not reach the database."""

        def fail(*_):
            Finalized(self.terminate)
            raise OperationalError("the server is gone")

        monkeypatch.setattr(table, "acquire", fail)
        monkeypatch.setattr("django_dblock.cli.supervisor._AGAIN", 60)  # no second attempt
        assert run() == 128 + signal.SIGTERM

    def test_an_alarm_of_others_stays(self):
        signal.setitimer(signal.ITIMER_REAL, 1_000)
        try:
            assert run() == 0
            left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert left > 0

    def test_other_swallowed_errors_are_reported_as_before(self, monkeypatch):
        acquire, reported = table.acquire, []

        def take(*arguments):
            Finalized(lambda: 1 / 0)
            return acquire(*arguments)

        monkeypatch.setattr(table, "acquire", take)
        monkeypatch.setattr(sys, "unraisablehook", lambda error: reported.append(error.exc_type))
        before = sys.unraisablehook
        assert run() == 0
        assert reported == [ZeroDivisionError]
        assert sys.unraisablehook is before


def test_command_outside_the_group_gets_signals():
    with Job() as job:
        job.start(python("import os, time; os.setsid(); time.sleep(60)"), os.environ)
        job.keep_until(now() + 60)
        observe.until(lambda: os.getpgid(job._command.pid) != job.group, "it leaves")
        job.signal(signal.SIGTERM)
        observe.until(lambda: job.look() or job.is_over(), "it ends")
    assert job.returncode == -signal.SIGTERM
    job.signal_command(signal.SIGTERM)  # to nobody


def test_error_in_the_supervisor_ends_the_command(monkeypatch):
    class Broken(Exception):
        pass

    def fail(job):
        raise Broken(job._command)

    monkeypatch.setattr(Job, "look", fail)
    with pytest.raises(Broken) as caught:
        run(command=("sleep", "60"))
    [command] = caught.value.args
    assert command.wait(90) == -signal.SIGKILL
