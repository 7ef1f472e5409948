"""``dblock migrate`` and ``dblock run --advisory``: a command under an advisory lock."""

import os
import signal
import subprocess
import sys
import threading
from io import StringIO

import psycopg
import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections

from django_dblock.cli import migrate
from django_dblock.cli.advisory_hold import AdvisoryHold
from django_dblock.core.application_name import named
from django_dblock.keys import encode, key_id
from tests.helpers import observe

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.processes,
]

NUMBER = key_id(encode(migrate.KEY))


@pytest.fixture
def migrating(monkeypatch):
    """Put a function in the place of Django's ``migrate``; return its calls."""
    calls = []

    def replace(function=lambda: None):
        def stand_in(name, *arguments, stdout, skip_checks):
            calls.append((name, *arguments))
            return function()

        monkeypatch.setattr(migrate, "call_command", stand_in)
        return calls

    return replace


def dblock(*arguments):
    out = StringIO()
    call_command("dblock", *arguments, stdout=out)
    return out.getvalue()


def refusal(*arguments):
    with pytest.raises(CommandError) as caught:
        dblock(*arguments)
    return caught.value


def holder(observer):
    """The backend that holds the lock: pid, state, backend_xmin."""
    return observer.execute(
        "SELECT pid, state, backend_xmin FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted"
    ).fetchone()


class TestMigrate:
    def test_arguments_after_the_dashes_go_to_migrate(self, migrating):
        calls = migrating()
        dblock("migrate", "--", "shop", "0003", "--fake")
        assert calls == [("migrate", "--database=default", "shop", "0003", "--fake")]

    def test_djangos_migrate_finds_nothing_to_do(self):
        assert "No migrations to apply." in dblock("migrate")

    def test_system_checks_run_as_in_djangos_migrate(self, monkeypatch):
        found = [checks.Error("a model that can't work", id="tests.E001")]
        monkeypatch.setattr("django.core.management.base.checks.run_checks", lambda **_: found)
        with pytest.raises(SystemCheckError, match=r"tests\.E001"):
            call_command("migrate", skip_checks=False)
        with pytest.raises(SystemCheckError, match=r"tests\.E001"):
            dblock("migrate")
        assert "No migrations to apply." in dblock("migrate", "--", "--skip-checks")

    def test_exit_status_of_migrate_is_passed_on(self, migrating):
        def pending():
            raise SystemExit(1)

        migrating(pending)
        with pytest.raises(SystemExit, match="1"):
            dblock("migrate", "--", "--check")

    def test_holder_has_no_snapshot_and_no_timeout(self, migrating, observer, monkeypatch):
        options = "-c idle_in_transaction_session_timeout=500 -c statement_timeout=5000"
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "options", options)
        found = []

        def look():
            observer.execute("SELECT pg_sleep(0.8)")
            found.append(holder(observer))

        migrating(look)
        dblock("migrate")
        [(_, state, xmin)] = found
        assert (state, xmin) == ("idle in transaction", None)

    def test_lock_is_released_after_success_and_error(self, migrating, observer):
        def fail():
            raise RuntimeError("a migration failed")

        migrating()
        dblock("migrate")
        observe.until(lambda: holder(observer) is None, "the lock is free")
        migrating(fail)
        with pytest.raises(RuntimeError):
            dblock("migrate")
        observe.until(lambda: holder(observer) is None, "the lock is free")

    def test_loser_names_the_holder_and_then_migrates(self, migrating, rival, observer):
        calls = migrating()
        rival.execute("SET application_name = 'pod-1'; BEGIN")
        rival.execute("SELECT pg_advisory_xact_lock(%s)", [NUMBER])
        out = StringIO()
        thread = threading.Thread(
            target=lambda: (
                call_command("dblock", "migrate", stdout=out), connections.close_all()
            )
        )  # fmt: skip
        thread.start()
        observe.until(lambda: "Waiting for" in out.getvalue(), "it says so")
        assert calls == []
        rival.execute("COMMIT")
        thread.join(60)
        assert len(calls) == 1
        pid = rival.info.backend_pid
        assert out.getvalue().count("Waiting") == 1
        assert f"Waiting for the process that migrates 'default': backend {pid} (pod-1" in (
            out.getvalue()
        )

    def test_timeout_is_status_75_and_nothing_runs(self, migrating, rival):
        calls = migrating()
        rival.execute("BEGIN")
        rival.execute("SELECT pg_advisory_xact_lock(%s)", [NUMBER])
        error = refusal("migrate", "--timeout", "0.2")
        rival.execute("ROLLBACK")
        assert error.returncode == 75
        assert f"backend {rival.info.backend_pid}" in str(error)
        assert calls == []

    def test_lost_lock_is_status_79(self, migrating, observer):
        def lose():
            observer.execute("SELECT pg_terminate_backend(%s)", [holder(observer)[0]])
            observe.until(lambda: holder(observer) is None, "it is gone")

        migrating(lose)
        error = refusal("migrate")
        assert error.returncode == 79
        assert "its connection was lost" in str(error)

    @pytest.mark.parametrize(
        "arguments", [("--timeout", "-1"), ("--timeout", "nan"), ("--", "--database=x")], ids=str
    )
    def test_wrong_arguments_are_status_2(self, arguments, migrating):
        calls = migrating()
        assert refusal("migrate", *arguments).returncode == 2
        assert calls == []

    def test_other_engines_are_refused(self):
        assert "PostgreSQL" in str(refusal("migrate", "--using", "sqlite"))


class TestIndexConcurrently:
    """A migration's CREATE INDEX CONCURRENTLY waits for every snapshot that is older."""

    INDEX = "CREATE INDEX CONCURRENTLY dblock_probe ON django_dblock_fencedlock (owner)"

    @pytest.fixture(autouse=True)
    def _no_index_is_left(self, observer):
        yield
        observer.execute("DROP INDEX IF EXISTS dblock_probe")

    def test_holder_and_waiters_do_not_block_the_index(self, rival, observer):
        waiting, held = [], []

        def wait():
            hold = AdvisoryHold(named(migrate.KEY), using=None, timeout=60, on_wait=waiting.append)
            with hold:
                held.append(hold.look_now())

        with AdvisoryHold(named(migrate.KEY), using=None, timeout=0):
            thread = threading.Thread(target=wait)
            thread.start()
            observe.until(lambda: waiting, "another one waits")
            rival.execute("SET statement_timeout = '30s'")
            rival.execute(self.INDEX)
        thread.join(60)
        assert held == [True]

    def test_negative_twin_queued_waiter_blocks_the_index(self, connect, rival):
        holding, queued = connect(), connect()
        holding.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
        queued.execute("BEGIN")
        queued.pgconn.send_query(b"SELECT pg_advisory_xact_lock(1)")
        observe.until_blocked(rival)
        rival.execute("SET statement_timeout = '500ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            rival.execute(self.INDEX)
        holding.execute("ROLLBACK")
        queued.close()


class TestRunAdvisory:
    def run(self, *arguments, command=("true",)):
        try:
            call_command("dblock", "run", "--advisory", "report", *arguments, "--", *command)
        except SystemExit as end:
            return end.code
        return 0

    def test_exit_status_is_the_commands(self):
        assert self.run(command=("sh", "-c", '[ "$DBLOCK_LOCK" = report ] && exit 7')) == 7

    def test_busy_lock_is_status_75(self, rival):
        rival.execute("BEGIN")
        number = key_id(encode(("report",)))
        rival.execute("SELECT pg_advisory_xact_lock(%s)", [number])
        with pytest.raises(CommandError) as caught:
            self.run()
        rival.execute("ROLLBACK")
        assert caught.value.returncode == 75
        assert self.run("--timeout", "5") == 0

    def test_lock_is_held_while_the_command_runs(self, observer):
        program = (
            "import os, psycopg;"
            "c = psycopg.connect(os.environ['CONNINFO']);"
            'rows = c.execute("SELECT application_name FROM pg_locks JOIN pg_stat_activity'
            " USING (pid) WHERE locktype = 'advisory'\").fetchall();"
            "assert rows == [('tests lock[report]',)], rows"
        )
        from tests.conftest import conninfo

        os.environ["CONNINFO"] = conninfo()
        try:
            assert self.run(command=(sys.executable, "-c", program)) == 0
        finally:
            del os.environ["CONNINFO"]
        observe.until(lambda: holder(observer) is None, "the lock is free")

    def test_lost_connection_ends_the_command_with_status_79(self, observer, monkeypatch):
        from django_dblock.cli import advisory_hold

        monkeypatch.setattr(advisory_hold, "_LOOK_EVERY", 0.1)

        def lose():
            observe.until(lambda: holder(observer), "it is held")
            observer.execute("SELECT pg_terminate_backend(%s)", [holder(observer)[0]])

        thread = threading.Thread(target=lose)
        thread.start()
        with pytest.raises(CommandError) as caught:
            self.run(command=("sleep", "60"))
        thread.join()
        assert caught.value.returncode == 79
        assert "its connection was lost" in str(caught.value)

    def test_silent_server_ends_the_command_with_status_79(self, observer, monkeypatch):
        """As behind a network that is cut: nobody waits for an answer that does not come."""
        from django_dblock.cli import advisory_hold, supervisor

        for module in (advisory_hold, supervisor):
            monkeypatch.setattr(module, "TTL", 12.0)
        monkeypatch.setattr(advisory_hold, "_LOOK_EVERY", 0.1)
        frozen, told = [], threading.Event()

        def freeze():
            observe.until(
                lambda: (holder(observer) or "..")[1] == "idle in transaction", "it is held"
            )
            frozen.append(holder(observer)[0])
            os.kill(frozen[0], signal.SIGSTOP)
            told.wait(60)
            os.kill(frozen[0], signal.SIGCONT)

        thread = threading.Thread(target=freeze)
        thread.start()
        try:
            with pytest.raises(CommandError) as caught:
                self.run(command=("sleep", "60"))
        finally:
            told.set()
            thread.join()
        assert caught.value.returncode == 79
        assert "about to expire" in str(caught.value)
        assert "exit status 143" in str(caught.value), "asked to end in time, not killed"

    def test_answer_extends_the_trust(self, monkeypatch):
        with AdvisoryHold(named(("report",)), using=None, timeout=0) as hold:
            before = hold._confirmed_at
            monkeypatch.setattr("django_dblock.cli.advisory_hold._LOOK_EVERY", 0.0)
            observe.until(lambda: hold.remaining and hold._confirmed_at > before, "it is answered")
            assert not hold.lost

    def test_answer_that_is_an_error_is_a_loss(self, monkeypatch):
        with AdvisoryHold(named(("report",)), using=None, timeout=0) as hold:
            with pytest.raises(psycopg.errors.DivisionByZero):
                hold._connection.connection.execute("SELECT 1/0")
            monkeypatch.setattr("django_dblock.cli.advisory_hold._LOOK_EVERY", 0.0)
            observe.until(lambda: not hold.remaining, "it is lost")
            assert "current transaction is aborted" in hold.loss().reason

    def test_options_of_leases_are_refused(self):
        with pytest.raises(CommandError) as caught:
            self.run("--hold-at-least", "5")
        assert caught.value.returncode == 2

    def test_empty_key_is_refused(self):
        with pytest.raises(CommandError, match="--advisory is empty") as caught:
            call_command("dblock", "run", "--advisory", "", "--", "true")
        assert caught.value.returncode == 2


def test_three_processes_migrate_an_empty_database_at_once(observer):
    """Without the lock two of three failed in most runs: each creates the same tables."""
    observer.execute("DROP DATABASE IF EXISTS dblock_migrated")
    observer.execute("CREATE DATABASE dblock_migrated")
    server, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    environment = {
        **os.environ, "DATABASE_URL": f"{server}/dblock_migrated",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-m", "django", "dblock", "migrate", "--", "--verbosity", "1"]
    processes = [
        subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sum("No migrations to apply." in out for out, _ in outputs) == 2, outputs
    observer.execute("DROP DATABASE dblock_migrated")
