"""dblock run --semaphore, dblock run --once-per, and dblock lead."""

import os
import signal
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from django_dblock import FencedLock, fenced_semaphore, leader, leadership, missed, once_per
from django_dblock.cli.supervisor import Inbox
from django_dblock.fencing import store
from tests.coordination.rows import held
from tests.fencing.running import dblock, running
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("within_a_period")]


def call(subcommand, *arguments, command=("true",)):
    """Return the exit status, as a shell would see it."""
    try:
        call_command("dblock", subcommand, *arguments, "--", *command)
    except SystemExit as end:
        return end.code
    return 0


def refusal(*arguments, **more):
    with pytest.raises(CommandError) as caught:
        call(*arguments, **more)
    return caught.value


class TestSemaphore:
    PERMITS = ("run", "--semaphore", "render", "--permits", "2")

    def test_command_holds_a_permit(self, capfd):
        assert call(*self.PERMITS, command=("sh", "-c", "echo $DBLOCK_LOCK $DBLOCK_TOKEN")) == 0
        token = FencedLock.objects.get(name="render~semaphore", slot=0).token
        assert capfd.readouterr().out == f"render~semaphore {token}\n"
        assert held("render~semaphore") == []

    def test_busy_permits_are_status_75(self):
        permits = fenced_semaphore("render", permits=2, ttl=30)
        with permits, permits:
            assert refusal(*self.PERMITS).returncode == 75
        with permits:
            assert call(*self.PERMITS) == 0

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--semaphore", "render"),
            ("--permits", "2", "--lock", "a"),
            ("--semaphore", "render", "--permits", "0"),
            ("--semaphore", "", "--permits", "2"),
            ("--once-per", "day"),
            ("--once-per", ""),
            ("--key", "a", "--lock", "a"),
            ("--once-per", "day", "--key", ""),
            ("--once-per", "fortnight", "--key", "a"),
            ("--once-per", "day", "--key", "a", "--tz", "Mars/Olympus"),
            ("--semaphore", "model:no.Such:1", "--permits", "2"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments):
        assert refusal("run", *arguments).returncode in (1, 2)


class TestOncePer:
    JOB = ("run", "--once-per", "day", "--key", "settlement", "--tz", "UTC")

    def test_second_run_in_a_period_only_says_that_it_is_done(self, capsys, tmp_path):
        command = ("sh", "-c", f"echo x >> {tmp_path}/runs")
        assert call(*self.JOB, command=command) == 0
        assert call(*self.JOB, command=command) == 0
        assert (tmp_path / "runs").read_text() == "x\n"
        assert "settlement is done for 20" in capsys.readouterr().out

    def test_failed_command_is_due_again(self, tmp_path):
        flag = tmp_path / "flag"
        command = ("sh", "-c", f"test -e {flag}")
        assert call(*self.JOB, command=command) == 1
        flag.touch()
        assert call(*self.JOB, command=command) == 0
        flag.unlink()
        assert call(*self.JOB, command=command) == 0  # done

    def test_command_and_decorator_share_a_record(self):
        ran = []
        job = once_per("day", key="settlement", tz="UTC")(ran.append)
        assert call(*self.JOB) == 0
        assert job.run().state == "done"
        assert ran == []
        assert missed("settlement", per="day", since=job.period().start, tz="UTC") == []

    def test_run_that_lost_its_lock_records_nothing(self, observer):
        name = "once_per:settlement:day"
        end = (
            "import os, psycopg; c = psycopg.connect(os.environ['URL'], autocommit=True);"
            f'c.execute("UPDATE django_dblock_fencedlock SET token = token + 1, expires_at = now()'
            f" WHERE name = '{name}'\")"
        )
        from tests.conftest import conninfo

        os.environ["URL"] = conninfo()
        try:
            error = refusal(*self.JOB, command=(sys.executable, "-c", end))
        finally:
            del os.environ["URL"]
        assert error.returncode == 79
        assert call(*self.JOB, command=("false",)) == 1  # it is due

    def test_success_that_cannot_be_recorded_is_status_125(self, monkeypatch):
        def record(*_):
            raise OperationalError("gone")

        with monkeypatch.context() as patched:
            patched.setattr(once_per, "record", record)
            error = refusal(*self.JOB)
        assert error.returncode == 125
        assert "could not be recorded: gone. It is due again." in str(error)
        assert call(*self.JOB, command=("false",)) == 1  # it is due

    def test_lock_that_cannot_be_released_is_logged(self, monkeypatch, caplog):
        def release(*_, **more):
            raise OperationalError("gone")

        monkeypatch.setattr(store, "release", release)
        assert call(*self.JOB) == 0
        assert "The lock was not released" in caplog.text
        today = once_per("day", key="settlement", tz="UTC").current().start
        assert missed("settlement", per="day", since=today, tz="UTC") == []


class TestLead:
    def test_command_gets_the_name_and_its_status_is_returned(self, capfd):
        shown = ("sh", "-c", "echo $DBLOCK_LOCK; exit 7")
        assert call("lead", "scheduler", "--ttl", "20", command=shown) == 7
        assert capfd.readouterr().out == "scheduler~leader\n"
        assert leader("scheduler") is None
        assert call("lead", "scheduler") == 0

    def test_ready_file_exists_only_during_the_term(self, tmp_path, capfd):
        path = tmp_path / "ready"
        path.write_text("left by a process that was killed")
        command = ("sh", "-c", f"cat {path}")
        assert call("lead", "scheduler", "--ready-file", str(path), command=command) == 0
        token = FencedLock.objects.get(name="scheduler~leader").token
        assert capfd.readouterr().out == f"{token}\n"
        assert not path.exists()

    def test_lost_leader_campaigns_again(self, tmp_path, capsys):
        """The first command ends its own term, the second one finds that and succeeds."""
        from tests.conftest import conninfo

        flag = tmp_path / "flag"
        program = (
            "import os, pathlib, time, psycopg\n"
            f"flag = pathlib.Path({str(flag)!r})\n"
            "if flag.exists(): raise SystemExit(0)\n"
            "flag.touch()\n"
            "c = psycopg.connect(os.environ['URL'], autocommit=True)\n"
            "c.execute('UPDATE django_dblock_fencedlock SET token = token + 1')\n"
            "time.sleep(60)\n"
        )
        os.environ["URL"] = conninfo()
        try:
            command = (sys.executable, "-c", program)
            assert call("lead", "scheduler", "--ttl", "3", command=command) == 0
        finally:
            del os.environ["URL"]
        assert "Campaigning again." in capsys.readouterr().out

    def test_signal_after_a_loss_ends_the_campaign(self, tmp_path):
        """The command takes its own lease away; asked to end, it asks the leader to end too."""
        from tests.conftest import conninfo

        flag = tmp_path / "flag"
        program = (
            "import os, pathlib, signal, psycopg\n"
            f"flag = pathlib.Path({str(flag)!r})\n"
            "if flag.exists(): raise SystemExit(0)\n"
            "flag.touch()\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
            "c = psycopg.connect(os.environ['URL'], autocommit=True)\n"
            "c.execute('UPDATE django_dblock_fencedlock SET token = token + 1')\n"
            "signal.sigwait({signal.SIGTERM})\n"
            "os.kill(os.getppid(), signal.SIGTERM)\n"
        )
        os.environ["URL"] = conninfo()
        try:
            command = (sys.executable, "-c", program)
            assert call("lead", "scheduler", "--ttl", "3", command=command) == 128 + signal.SIGTERM
        finally:
            del os.environ["URL"]

    def test_candidate_waits_for_an_unreachable_database(self, monkeypatch, capsys):
        original, errors = store.acquire, [OperationalError("gone")]

        def acquire(*arguments):
            if errors:
                raise errors.pop()
            return original(*arguments)

        monkeypatch.setattr(store, "acquire", acquire)
        monkeypatch.setattr("django_dblock.cli.lead._BREAK", 0.01)
        assert call("lead", "scheduler") == 0
        assert "Campaigning again." in capsys.readouterr().out

    def test_other_signals_do_not_end_the_wait_for_the_database(self, monkeypatch):
        """As process 1 of a container it gets SIGCHLD for every orphan that ends."""
        original, errors = store.acquire, [OperationalError("gone")]
        wait, sent = Inbox.wait, []

        def acquire(*arguments):
            if errors:
                raise errors.pop()
            return original(*arguments)

        def wait_for_another(inbox, seconds):
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGCHLD))
            return wait(inbox, seconds)

        monkeypatch.setattr(store, "acquire", acquire)
        monkeypatch.setattr(Inbox, "wait", wait_for_another)
        assert call("lead", "scheduler", command=("sh", "-c", "exit 7")) == 7

    def test_signal_ends_the_wait_for_the_database(self, monkeypatch):
        def acquire(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            raise OperationalError("gone")

        monkeypatch.setattr(store, "acquire", acquire)
        assert call("lead", "scheduler") == 128 + signal.SIGTERM

    @pytest.mark.parametrize(
        "arguments", [("",), ("a", "--ttl", "0"), ("a", "--ttl", "x"), ("int:x",)]
    )
    def test_wrong_arguments_are_refused(self, arguments):
        assert refusal("lead", *arguments).returncode in (1, 2)

    @pytest.mark.parametrize("path", [".", "no-such-directory/ready"])
    def test_unusable_ready_file_is_status_125(self, path, tmp_path):
        error = refusal("lead", "scheduler", "--ready-file", str(tmp_path / path))
        assert error.returncode == 125
        assert "Nothing was run: --ready-file" in str(error)
        assert leader("scheduler") is None

    def test_missing_command_is_status_127(self):
        assert refusal("lead", "scheduler", command=("/no/such/command",)).returncode == 127
        assert leader("scheduler") is None

    def test_missing_process_groups_are_status_125(self, monkeypatch):
        monkeypatch.delattr(os, "killpg")
        assert refusal("lead", "scheduler").returncode == 125

    @pytest.mark.processes
    def test_sigterm_elects_the_standby(self, observer):
        command = dblock("lead", "scheduler", "--ttl", "30", "--", "sleep", "60")
        with running(name=None, command=command) as first:
            observe.until(lambda: leader("scheduler"), "the first leads")
            token = leader("scheduler").token
            first.send_signal(signal.SIGTERM)
            for term in leadership("scheduler", ttl=30):
                assert term.token > token
                break
            assert first.wait(60) == 128 + signal.SIGTERM
