"""``manage.py dblock run`` as a process: signals, losses, freezes, deaths."""

import os
import select
import signal
import subprocess
import sys

import pytest

from django_dblock import fenced_lock, force_release
from tests.fencing.helpers import NAME, is_expired, row, until_expired, until_renewed
from tests.fencing.running import (
    ROOT,
    STUBBORN,
    WAITS,
    dblock,
    environment,
    finish,
    is_alive,
    line,
    outcome,
    running,
    state,
    until_ended,
    until_stopped,
    watchdog_of,
    with_no_error,
)
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.slow]


def waits(children=0):
    return (*WAITS, str(children))


def test_heartbeat_works_while_the_command_runs(observer):
    """For longer than the ttl."""
    with running("--ttl", "3", command=waits()) as process:
        line(process)
        for _ in range(4):
            until_renewed(observer)
        assert finish(process) == (0, "done\n", "")
    assert is_expired(observer)


class TestSignals:
    @pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2"])
    def test_signals_are_passed_on(self, name):
        with running(command=STUBBORN) as process:
            line(process)
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert line(process) == f"SIG{name}"
            assert finish(process) == (0, "done\n", "")

    def test_fatal_signal_is_in_the_status(self, observer):
        with running(command=waits()) as process:
            line(process)
            process.terminate()
            assert outcome(process) == (128 + signal.SIGTERM, "", "")
        assert is_expired(observer), "given back"

    def test_fatal_signals_reach_the_commands_children(self):
        with running(command=waits(2)) as process:
            pids = [int(line(process)) for _ in range(3)]
            process.send_signal(signal.SIGHUP)
            assert outcome(process) == (128 + signal.SIGHUP, "", "")
            until_ended(*pids)

    def test_user_signals_reach_only_the_command(self):
        """gunicorn, nginx … pass them on as they see fit."""
        source = """
import os, signal, sys
tell = lambda text: os.write(1, text + b"\\n")  # in one piece
child = os.fork()
waits_for = {signal.SIGUSR1} if child else {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, waits_for)  # none is missed before sigwait
tell(b"ready")
while signal.sigwait(waits_for) == signal.SIGUSR1:
    tell(b"parent" if child else b"child")
sys.exit("child ends")
"""
        with running(command=(sys.executable, "-u", "-c", source)) as process:
            assert [line(process), line(process)] == ["ready", "ready"]
            process.send_signal(signal.SIGUSR1)
            assert line(process) == "parent"
            process.terminate()
            assert outcome(process) == (143, "", "child ends\n")

    def test_stop_and_continue_reach_both(self):
        with running("--ttl", "60", command=waits()) as process:
            command = int(line(process))
            process.send_signal(signal.SIGTSTP)
            until_stopped(process.pid, command)
            process.send_signal(signal.SIGCONT)
            observe.until(lambda: state(command) == "S", "it goes on")
            assert finish(process) == (0, "done\n", "")

    def test_signal_ends_the_wait_for_the_lock(self, observer):
        with fenced_lock(NAME, ttl=60), running("--timeout", "forever", command=waits()) as process:
            until_asked(observer)
            process.terminate()
            assert outcome(process) == (143, "", "")


def until_asked(observer, times=1):
    """Wait until somebody has tried so often to take the lease since it was granted.

    An idle connection of an earlier test may show an older try.
    """
    seen = set()

    def asked():
        seen.update(observer.execute(
            "SELECT pid, query_start FROM pg_stat_activity WHERE query LIKE '%%WITH free AS%%'"
            " AND pid <> pg_backend_pid() AND datname = current_database()"
            " AND query_start > (SELECT acquired_at FROM django_dblock_fencedlock WHERE name = %s)",
            [NAME],
        ).fetchall())  # fmt: skip
        return len(seen) >= times

    observe.until(asked, f"{times} tries")


class TestOneAtATime:
    def test_second_starts_when_the_first_has_ended(self, observer):
        with running(command=waits()) as first:
            line(first)
            with running("--timeout", "forever", command=waits()) as second:
                until_asked(observer, 3)
                assert not select.select([second.stdout], [], [], 0)[0], "nothing started"
                assert finish(first)[0] == 0
                line(second)
                assert finish(second) == (0, "done\n", "")

    def test_negative_twin_without_the_lock_both_commands_run(self):
        with running(name=None, command=waits()) as first:
            line(first)
            with running(name=None, command=waits()) as second:
                line(second)
                assert first.poll() is None

    def test_many_processes_run_one_at_a_time(self, tmp_path):
        """Each finds the place empty, and leaves it so."""
        place = tmp_path / "place"
        work = ("sh", "-c", f"mkdir {place} && rmdir {place}")
        everybody = [
            subprocess.Popen(
                dblock("run", "--lock", NAME, "--timeout", "60", "--", *work),
                env=environment(), cwd=ROOT,
            )
            for _ in range(4)
        ]  # fmt: skip
        assert [each.wait(90) for each in everybody] == [0] * 4
        assert row().grants == 4


class TestLoss:
    def test_release_by_an_operator_ends_the_command(self, observer):
        """The command, and what it forked, is ended; before the time it would have expired at."""
        with running("--ttl", "9", command=waits(2)) as process:
            pids = [int(line(process)) for _ in range(3)]
            until = row().expires_at
            assert force_release(NAME)
            status, out, err = outcome(process)
            until_ended(*pids)
            assert observer.execute("SELECT clock_timestamp() < %s", [until]).fetchone()[0]
        assert (status, out) == (79, "")
        assert "another holder was granted the lease, or an operator" in err
        assert "The command ended with exit status 143" in err

    def test_unresponsive_command_is_killed_after_a_loss(self, observer):
        with running("--ttl", "6", command=STUBBORN) as process:
            line(process)
            until = row().expires_at
            assert force_release(NAME)
            assert line(process) == "SIGTERM", "it is asked first"
            status, _, err = outcome(process)
            assert observer.execute("SELECT clock_timestamp() < %s", [until]).fetchone()[0]
        assert status == 79
        assert "exit status 137" in err

    def test_stopped_command_is_ended_after_a_loss(self):
        with running("--ttl", "3", command=waits()) as process:
            command = int(line(process))
            os.kill(command, signal.SIGSTOP)
            until_stopped(command)
            assert force_release(NAME)
            status, _, err = outcome(process)
        assert status == 79
        assert "exit status 143" in err

    def test_unrenewed_lease_ends_the_command_before_expiry(self, observer, rival):
        """The table is locked: the command is ended while the lease still is valid."""
        with running("--ttl", "6", command=waits(1)) as process:
            pids = [int(line(process)) for _ in range(2)]
            with rival.transaction():
                rival.execute("LOCK TABLE django_dblock_fencedlock IN EXCLUSIVE MODE")
                until_ended(*pids)
                assert not is_expired(observer)
            status, _, err = outcome(process)
        assert status == 79
        assert "is about to expire" in err

    def test_lost_database_ends_the_command(self, migrated):
        with running("--ttl", "6", url=migrated.url, command=waits()) as process:
            command = int(line(process))
            migrated.stop("immediate")
            status, _, err = outcome(process)
            assert not is_alive(command)
            migrated.start()
        assert status == 79
        assert "exit status 143" in err


class TestSurvival:
    def test_command_survives_a_terminated_heartbeat(self, observer):
        with running("--ttl", "6", command=waits()) as process:
            line(process)
            until_renewed(observer)
            [[pid]] = observer.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'tests heartbeat'"
                " AND datname = current_database()"
            ).fetchall()
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            until_renewed(observer)
            status, out, err = finish(process)
        assert (status, out) == (0, "done\n")
        assert "A heartbeat on 'default' failed, trying again" in err
        assert is_expired(observer)

    def test_command_survives_a_restart_of_the_database(self, migrated):
        import psycopg

        with running("--ttl", "20", url=migrated.url, command=waits()) as process:
            line(process)
            with psycopg.connect(migrated.url, autocommit=True) as looking:
                granted = looking.execute("SELECT renewed_at FROM django_dblock_fencedlock")
                [before] = granted.fetchone()
            migrated.stop()
            migrated.start()
            with psycopg.connect(migrated.url, autocommit=True) as looking:
                observe.until(
                    lambda: looking.execute(
                        "SELECT renewed_at > %s FROM django_dblock_fencedlock", [before]
                    ).fetchone()[0],
                    "it is renewed",
                )
                status, out, _ = finish(process)
                assert (status, out) == (0, "done\n")
                assert is_expired(looking)


@pytest.fixture
def migrated(primary):
    """A server of its own, with our tables."""
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "-v0", "django_dblock"],
        env=environment(primary.url), cwd=ROOT, check=True,
    )  # fmt: skip
    return primary


class TestFreeze:
    @pytest.mark.parametrize("send", [os.kill, os.killpg])
    def test_command_ends_while_dblock_run_is_frozen(self, send):
        """Its watchdog ends the command before anybody else is granted the lock.

        A signal to the group is what a shell's ``kill -STOP %1`` sends.
        """
        with running("--ttl", "6", command=waits(1)) as process:
            pids = [int(line(process)) for _ in range(2)]
            watchdog_of(process, *pids)
            send(process.pid, signal.SIGSTOP)
            until_stopped(process.pid)
            with fenced_lock(NAME, ttl=60, timeout=60):
                assert not any(map(is_alive, pids))
                send(process.pid, signal.SIGCONT)
                status, out, err = outcome(process)
        assert (status, out) == (79, "")
        assert "exit status 137" in err

    def test_command_that_ended_during_the_freeze_keeps_its_status(self, observer):
        with running("--ttl", "4", command=waits()) as process:
            command = int(line(process))
            process.send_signal(signal.SIGSTOP)
            until_stopped(process.pid)
            os.kill(command, signal.SIGTERM)
            until_expired(observer)
            process.send_signal(signal.SIGCONT)
            status, _, err = outcome(process)
        assert status == 79, "whether anybody was at work beside it, nobody knows"
        assert "no renewal was confirmed in time" in err
        assert "exit status 143" in err

    def test_freeze_past_the_ttl_ends_the_command(self, observer):
        with running("--ttl", "4", command=waits()) as process:
            command = int(line(process))
            everybody = [process.pid, watchdog_of(process, command), command]
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
            until_stopped(*everybody)
            until_expired(observer)
            with fenced_lock(NAME, ttl=60) as other:
                for pid in sorted(everybody, key=command.__eq__):  # the command last
                    with_no_error(os.kill, pid, signal.SIGCONT)  # the watchdog may be done already
                status, out, err = outcome(process)
                assert (status, out) == (79, "")
                assert "exit status 137" in err, "no time is left to ask"
                other.check()
                assert row().token == other.token


class TestDeath:
    def test_nothing_outlives_a_killed_dblock_run(self):
        with running("--ttl", "60", command=waits(2)) as process:
            pids = [int(line(process)) for _ in range(3)]
            watchdog = watchdog_of(process, *pids)
            process.kill()
            until_ended(*pids, watchdog)

    def test_nothing_outlives_the_killed_group_of_dblock_run(self):
        """As ``timeout -k 10`` does at last, and a shell's ``kill -9 %1``."""
        with running("--ttl", "60", command=waits(2)) as process:
            pids = [int(line(process)) for _ in range(3)]
            watchdog = watchdog_of(process, *pids)
            os.killpg(process.pid, signal.SIGKILL)
            until_ended(*pids, watchdog)

    def test_killed_watchdog_is_no_loss(self, observer):
        with running("--ttl", "3", command=waits()) as process:
            command = int(line(process))
            os.kill(watchdog_of(process, command), signal.SIGKILL)
            for _ in range(2):
                until_renewed(observer)
            assert finish(process) == (0, "done\n", "")

    def test_orphans_end_before_the_lock_is_released(self, observer):
        with running("--ttl", "60", command=("sh", "-c", "sleep 600 & echo $!; exit 5")) as process:
            left = int(line(process))
            assert outcome(process)[0] == 5
            assert not is_alive(left)
        assert is_expired(observer)

    def test_orphans_that_ignore_sigterm_are_killed(self, observer):
        script = "trap '' TERM; sleep 600 & echo $!; exit 5"
        with running("--ttl", "4", command=("sh", "-c", script)) as process:
            left = int(line(process))
            assert outcome(process)[0] == 5
            assert not is_alive(left)
        assert is_expired(observer)
