"""``dblock run``, called in this process: what it does about signals, losses and the terminal."""

import errno
import os
import runpy
import select
import signal
import sys
from textwrap import dedent

import pytest

from django_dblock.cli import (
    supervisor as inbox,
)
from django_dblock.cli import (
    supervisor as supervision,
)
from django_dblock.cli import (
    supervisor as terminal,
)
from django_dblock.cli import (
    watchdog,
)
from django_dblock.cli.supervised_process import Job
from django_dblock.fencing import deadline as trust
from django_dblock.fencing import heartbeat as beat
from tests.app.models import Account
from tests.fencing.commands import printed, python, refusal, run
from tests.fencing.running import state
from tests.helpers import observe

pytestmark = pytest.mark.django_db(transaction=True)


def stays(does, on):
    """A command that does something, waits for signals, and exits with 42 at one of them."""
    return python(
        dedent(
            f"""
            import os, signal, sys
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{on}])  # it isn't missed
            {does}
            signal.sigwait([signal.{on}])
            sys.exit(42)
            """
        )
    )


def tells_us(name):
    return f"os.kill(os.getppid(), signal.{name})"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGCONT"])
def test_signal_is_passed_on(name):
    assert run(command=stays(tells_us(name), on=name)) == 42


class TestStop:
    @pytest.fixture
    def stopped(self, monkeypatch):
        """Where we would stand still until somebody continues us, we are continued at once."""
        plain, found = os.kill, []

        def kill(pid, number):
            if number == signal.SIGSTOP:
                found.append(pid)
                number = signal.SIGCONT
            plain(pid, number)

        monkeypatch.setattr(supervision.os, "kill", kill)
        return found

    def test_supervisor_stops_and_continues_with_the_command(self, stopped):
        assert run(command=stays(tells_us("SIGTSTP"), on="SIGCONT")) == 42
        assert stopped == [os.getpid()]

    def test_self_stopped_command_is_not_followed(self, stopped):
        """Only at a terminal does somebody wait for that."""
        script = "(while kill -CONT $$; do :; done) 2>/dev/null & kill -STOP $$; exit 7"
        assert run(command=("sh", "-c", script)) == 7
        assert stopped == []

    def test_terminal_is_returned_before_stopping(self, stopped, at_a_terminal):
        assert run(command=("sh", "-c", "kill -STOP $$; exit 7")) == 7
        assert stopped == [os.getpid()]
        ours = os.getpgrp()
        assert [group == ours for group in at_a_terminal] == [False, True, False, True]
        assert at_a_terminal[0] == at_a_terminal[2]

    @pytest.mark.parametrize(
        ("name", "stops"), [("SIGTERM", 0), ("SIGUSR1", 1)], ids=["TERM", "USR1"]
    )
    def test_signal_that_comes_with_a_stop_is_passed_on(
        self, name, stops, stopped, at_a_terminal, monkeypatch
    ):
        """Whoever pressed Ctrl-Z, another process asked us to end at the same time."""
        jobs, sent = [], []
        start, look, wait = Job.start, Job.look, inbox.Inbox.wait

        def note(job, *arguments):
            start(job, *arguments)
            jobs.append(job)

        def both(self, seconds):
            if not sent:
                observe.until(lambda: state(jobs[0]._command.pid) == "T", "it has stopped")
                sent.append(os.kill(os.getpid(), getattr(signal, name)))
                observe.until(lambda: self._queue.qsize() > 1, "both are known")
                found = [wait(self, 0) for _ in range(self._queue.qsize())]
                return next(number for number in found if number != signal.SIGCHLD)
            return wait(self, seconds)

        monkeypatch.setattr(Job, "start", note)
        monkeypatch.setattr(Job, "look", lambda job: look(job) if sent else None)
        monkeypatch.setattr(inbox.Inbox, "wait", both)
        script = f"trap 'exit 42' {name[3:]}; kill -STOP $$; exit 7"
        assert run(command=("sh", "-c", script)) == 42
        assert stopped == [os.getpid()] * stops


@pytest.fixture
def at_a_terminal(monkeypatch):
    """Standard input and output are one; whom it was given to, in order."""
    given = []
    monkeypatch.setattr(terminal.os, "isatty", lambda _: True)
    monkeypatch.setattr(terminal.os, "tcgetpgrp", lambda _: given[-1] if given else os.getpgrp())
    monkeypatch.setattr(terminal.os, "tcsetpgrp", lambda _, group: given.append(group))
    return given


def test_background_run_does_not_take_the_terminal(at_a_terminal, monkeypatch):
    monkeypatch.setattr(terminal.os, "tcgetpgrp", lambda _: 1)
    assert run() == 0
    assert at_a_terminal == []


def test_terminal_that_is_gone_does_not_change_the_status(at_a_terminal, monkeypatch):
    """Its window was closed, and the command ignores SIGHUP."""

    def give(_, group):
        if at_a_terminal:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        at_a_terminal.append(group)

    monkeypatch.setattr(terminal.os, "tcsetpgrp", give)
    assert run(command=("sh", "-c", "exit 7")) == 7
    assert len(at_a_terminal) == 1


def test_terminal_of_another_session_is_not_taken(at_a_terminal, monkeypatch):
    def fail(_):
        raise OSError("not our controlling terminal")

    monkeypatch.setattr(terminal.os, "tcgetpgrp", fail)
    assert run() == 0
    assert at_a_terminal == []


def until_it_ends(job, look):
    observe.until(lambda: look(job) or job.returncode is not None, "the command ends")


class TestLoss:
    def takes_it_away(self, observer):
        return (
            f"import psycopg; psycopg.connect({observer.info.dsn!r}, autocommit=True).execute("
            "'UPDATE django_dblock_fencedlock SET token = token + 1'); print('taken', flush=True)"
        )

    def test_loss_sends_sigterm(self, observer, capfd):
        error = refusal("--ttl", "6", command=stays(self.takes_it_away(observer), on="SIGTERM"))
        assert error.returncode == 79
        assert "another holder was granted the lease" in str(error)
        assert "exit status 42" in str(error)
        assert printed(capfd) == "taken\n"

    def test_loss_wakes_the_supervisor(self, observer, monkeypatch):
        """Not the next look at the clock."""
        monkeypatch.setattr(inbox.Inbox, "wait", lambda self, _: self._queue.get(timeout=90))
        error = refusal("--ttl", "15", command=stays(self.takes_it_away(observer), on="SIGTERM"))
        assert "exit status 42" in str(error), "asked to end, not killed at last"

    def test_unresponsive_command_is_killed(self, observer):
        does = f"signal.signal(15, signal.SIG_IGN); {self.takes_it_away(observer)}"
        error = refusal("--ttl", "2", command=stays(does, on="SIGUSR1"))
        assert error.returncode == 79
        assert "exit status 137" in str(error)

    def test_command_is_ended_before_the_lease_expires(self, observer, monkeypatch):
        def fail(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr(beat.Line, "renew", fail)
        error = refusal("--ttl", "6", command=("sleep", "60"))
        assert error.returncode == 79
        assert "about to expire" in str(error)
        assert "exit status 143" in str(error)

    @pytest.fixture
    def freeze(self, monkeypatch):
        """Stand still for so many seconds in the first wait, after something has happened."""
        plain_now, plain_wait, slept = trust.now, inbox.Inbox.wait, []

        def freeze(seconds, meanwhile=lambda: 0):
            def wait(self, _):
                if slept:
                    return plain_wait(self, 0.01)
                number = plain_wait(self, meanwhile())
                slept.append(seconds)
                return number

            for module in (trust, supervision):
                monkeypatch.setattr(module, "now", lambda: plain_now() + sum(slept))
            monkeypatch.setattr(inbox.Inbox, "wait", wait)

        return freeze

    @pytest.mark.parametrize(
        ("seconds", "reason"),
        [(52.5, "about to expire"), (55, "was suspended until"), (100, "no renewal was confirmed")],
    )
    def test_late_loss_kills_without_sigterm(self, seconds, reason, freeze, monkeypatch):
        """Of 60 s it trusts 57; at 51 it is too late to ask, at 54 the watchdog has acted."""
        asked = []
        monkeypatch.setattr(
            supervision.Supervision, "_ask_to_end", lambda _, number: asked.append(number)
        )
        freeze(seconds)
        error = refusal("--ttl", "60", command=("sleep", "60"))
        assert error.returncode == 79
        assert reason in str(error)
        assert "exit status 137" in str(error)
        assert asked == []

    def test_ended_command_is_not_blamed_on_the_watchdog(self, freeze, tmp_path):
        gate = tmp_path / "gate"
        os.mkfifo(gate)

        def let_it_end():
            gate.write_text("go")
            return 20  # seconds, until its end is told

        freeze(55, let_it_end)
        assert run("--ttl", "60", command=("sh", "-c", f"read go < {gate}; exit 7")) == 7

    @pytest.mark.parametrize("left", ["", "sleep 60 &"])
    def test_orphans_near_expiry_are_not_a_loss(self, left, monkeypatch):
        """The lease is about to expire when the command has ended, and is given back in time."""
        monkeypatch.setattr(supervision, "TERMINATE_AT", 1.0)
        monkeypatch.setattr(Job, "look", lambda job, plain=Job.look: until_it_ends(job, plain))
        assert run("--ttl", "60", command=("sh", "-c", f"{left} exit 7")) == 7

    def test_unkillable_command_is_reported(self, monkeypatch):
        """Another user's, or one that hangs in the kernel: waiting for it would help nobody."""
        monkeypatch.setattr(supervision, "_LONGEST_DYING", 0.0)
        monkeypatch.setattr(supervision.Supervision, "keep", lambda _: None)  # so: too late at once
        monkeypatch.setattr(Job, "look", lambda _: None)
        spared = []
        monkeypatch.setattr(Job, "signal", lambda job, number: spared.append((job, number)))
        error = refusal("--ttl", "60", command=("sleep", "60"))
        assert error.returncode == 79
        assert "The command could not be ended" in str(error)
        monkeypatch.undo()
        [job] = {job for job, _ in spared}
        os.kill(job._command.pid, signal.SIGKILL)
        assert job._command.wait(90) == -signal.SIGKILL


def is_reaped(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestJob:
    def test_process_of_another_user_counts_as_alive(self, monkeypatch):
        def refuse(*_):
            raise PermissionError

        with Job() as job:
            job.start(("true",), os.environ)
            job.keep_until(trust.now() + 60)
            observe.until(lambda: job.look() or job.returncode == 0, "it ends")
            with monkeypatch.context() as patch:
                patch.setattr(os, "killpg", refuse)
                assert not job.is_over()
            observe.until(job.is_over, "nobody is left")

    def test_end_of_another_process_is_not_the_commands(self):
        """Its own watchdog's, here; as process 1 of a container, a run gets orphans as well."""
        with Job() as job:
            job.start(("sleep", "60"), os.environ)
            os.kill(job.group, signal.SIGKILL)
            observe.until(lambda: job.look() or is_reaped(job.group), "the watchdog is reaped")
            assert job.returncode is None
            job.signal(signal.SIGKILL)
            observe.until(lambda: job.look() or job.returncode is not None, "it ends")
        assert job.returncode == -signal.SIGKILL

    def test_just_ended_command_has_not_left_the_group(self, monkeypatch):
        def refuse(*_):
            raise ProcessLookupError

        with Job() as job:
            job.start(("sleep", "60"), os.environ)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpgid", refuse)
                job.signal(signal.SIGKILL)
            observe.until(lambda: job.look() or job.returncode is not None, "it ends")
        assert job.returncode == -signal.SIGKILL


class TestWatchdog:
    """Run here, with nobody to kill: the test takes the place of the group."""

    @pytest.fixture
    def killed(self, monkeypatch):
        found = []
        monkeypatch.setattr(os, "killpg", lambda *who: found.append(who))
        monkeypatch.setattr(os, "write", lambda *_: None)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["watchdog.py", "17"])
        return found

    @pytest.fixture
    def hear(self, monkeypatch):
        """Let it read these, one after the other; None is silence until the time is over."""

        def script(*messages):
            left = list(messages)

            def wait(*_):
                return [[] if left[0] is None and left.pop(0) is None else [0]]

            monkeypatch.setattr(select, "select", wait)
            monkeypatch.setattr(os, "read", lambda *_: left.pop(0))
            return left

        return script

    def test_watchdog_kills_when_the_supervisor_is_gone(self, killed, hear):
        hear(None, b"")
        runpy.run_path(watchdog.__file__, run_name="__main__")
        assert killed == [(os.getpid(), signal.SIGKILL)]

    @pytest.fixture
    def moved(self, monkeypatch):
        """What joins which group, and who is ended; a child has the number 99."""
        found = []
        monkeypatch.setattr(os, "getpgrp", lambda: 99 if found else os.getpid())
        monkeypatch.setattr(os, "fork", lambda: 99)
        monkeypatch.setattr(os, "setpgid", lambda *group: found.append(group))
        monkeypatch.setattr(os, "kill", lambda *who: found.append(who))
        monkeypatch.setattr(os, "waitpid", lambda *_: None)
        return found

    def test_watchdog_kills_at_the_deadline(self, killed, hear, moved):
        later, over = trust.now() + 60, trust.now() - 1
        left = hear(
            watchdog.MESSAGE.pack(later, False), None,
            watchdog.MESSAGE.pack(later, False) + watchdog.MESSAGE.pack(later, True),
            watchdog.MESSAGE.pack(over, True), b"never read",
        )  # fmt: skip
        watchdog.main()
        assert left == [b"never read"]
        assert moved == [(99, 99), (0, 99), (99, signal.SIGKILL)], "to a new group, once"
        assert killed == [(os.getpid(), signal.SIGKILL)]

    def test_without_another_process_it_joins_the_group_of_dblock_run(
        self, killed, hear, moved, monkeypatch
    ):
        def refuse(*_):
            raise BlockingIOError("no more processes")

        monkeypatch.setattr(os, "fork", refuse)
        hear(watchdog.MESSAGE.pack(trust.now() + 60, True), b"")
        watchdog.main()
        assert moved == [(0, 17)]

    def test_child_that_leads_the_new_group_does_not_stay(self, killed, hear, moved, monkeypatch):
        class Ended(BaseException):
            pass

        def end(status):
            raise Ended

        monkeypatch.setattr(os, "fork", lambda: 0)
        monkeypatch.setattr(os, "_exit", end)
        monkeypatch.setattr(os, "closerange", lambda *numbers: moved.append(numbers))
        monkeypatch.setattr("time.sleep", moved.append)
        hear(watchdog.MESSAGE.pack(trust.now() + 60, True))
        with pytest.raises(Ended):
            watchdog.main()
        assert moved[0] == (0, 3), "it keeps no output of dblock run open"
        assert len(moved) == 2
        assert killed == []

    def test_watchdog_kills_without_joining_a_group(self, killed, hear, moved, monkeypatch):
        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr(os, "fork", refuse)
        monkeypatch.setattr(os, "setpgid", refuse)
        hear(watchdog.MESSAGE.pack(trust.now() + 60, True), b"")
        watchdog.main()
        assert killed == [(os.getpid(), signal.SIGKILL)]

    def test_watchdog_ignores_a_vanished_group(self, killed, hear, monkeypatch):
        def refuse(*_):
            raise ProcessLookupError

        monkeypatch.setattr(os, "killpg", refuse)
        hear(b"")
        watchdog.main()


@pytest.mark.django_db
def test_testcase_transaction_stays_open():
    """To close the connection would roll the transaction of the test back."""
    Account.objects.create(name="a")
    assert run(command=("sh", "-c", "exit 7")) == 7
    assert Account.objects.exists()
