"""PostgreSQL servers, a PgBouncer and a standby for the tests: started here, ended here."""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from embedded_postgres import DEFAULT_VERSION, THROW_AWAY, Server, ServerError

from tests.helpers import observe

SETTINGS = {
    **THROW_AWAY,
    "max_connections": "120",
    "deadlock_timeout": "100ms",
    # No checkpoint in the midst of a run: it takes minutes, and after one the server writes more
    # WAL than the operations that tests/test_counts.py counts.
    "checkpoint_timeout": "1d",
    # Nor a vacuum: its locks and transactions are the server's, which tests look at as a whole.
    "autovacuum": "off",
}


def version() -> int:
    """The major version that the tests start where no server is given."""
    return int(os.environ.get("DBLOCK_TEST_PG", DEFAULT_VERSION))


def free_port() -> int:
    """A port that nobody listens on, from below those that outgoing connections are given."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def throw_away(**settings: str) -> Server:
    """Start a new cluster on a loopback port, which this process removes when it exits."""
    folder = Path(tempfile.mkdtemp(prefix="dblock-tests-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            server.remove()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    while True:
        server = Server(
            folder / "pg", version=version(), settings={**SETTINGS, **settings},
            port=free_port(), tcp=True,
        )  # fmt: skip
        if _starts(server):
            return server


def _starts(server: Server) -> bool:
    """Start the server; return False if another process has taken its port since the look."""
    try:
        server.start()
    except ServerError as error:
        if "already in use" not in str(error):
            raise
        return False
    return True


def need(program: str, package: str) -> str:
    """Find a program, or skip; with ``DBLOCK_TEST_EVERYTHING`` set its absence is a failure."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{program} is not installed (Debian package {package})"
        if os.environ.get("DBLOCK_TEST_EVERYTHING"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextlib.contextmanager
def pgbouncer(
    target: str,
    database: str,
    *,
    mode: str = "transaction",
    pool_size: int = 20,
    query_wait_timeout: int = 60,
) -> Iterator[int]:
    """Run a PgBouncer in front of a server; yield its port on 127.0.0.1."""
    program = need("pgbouncer", "pgbouncer")
    server = psycopg.conninfo.conninfo_to_dict(target)
    folder = Path(tempfile.mkdtemp(prefix="dblock-pgbouncer-"))
    (folder / "users").write_text(f'"{server["user"]}" "{server.get("password", "")}"\n')
    folder.chmod(0o755)
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    while True:
        port = free_port()
        (folder / "ini").write_text(
            "\n".join(
                [
                    "[databases]",
                    (
                        f"{database} = host={server['host']} port={server.get('port', 5432)} "
                        f"dbname={database} user={server['user']}"
                    ),
                    "[pgbouncer]",
                    "listen_addr = 127.0.0.1",
                    f"listen_port = {port}",
                    "unix_socket_dir =",
                    "auth_type = any",
                    f"auth_file = {folder}/users",
                    f"pool_mode = {mode}",
                    f"default_pool_size = {pool_size}",
                    f"query_wait_timeout = {query_wait_timeout}",
                    "max_client_conn = 200",
                ]
            )
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, str(folder / "ini")], user=user, stderr=log)
        if _listens(process, folder / "log", port):
            break
    try:
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)
        shutil.rmtree(folder)


def _listens(process: "subprocess.Popen[bytes]", log: Path, port: int) -> bool:
    """Wait until the PgBouncer listens; return False if another process has taken its port.

    Somebody answers on the port in either case, so its log is read.
    """
    ready = f"listening on 127.0.0.1:{port}"
    observe.until(lambda: ready in log.read_text() or process.poll() is not None, "it listens")
    if ready in log.read_text():
        return True
    assert "already in use" in log.read_text(), log.read_text()
    return False


@contextlib.contextmanager
def standby(primary: Server, *, slot: str | None = None) -> Iterator[Server]:
    """Run a hot standby of the primary, streaming from it; through a slot, with feedback."""
    folder = Path(tempfile.mkdtemp(prefix="dblock-standby-"))
    # A standby needs room for at least as much as its primary has.
    settings = {**SETTINGS, "max_prepared_transactions": "2"}
    if slot is not None:
        settings |= {"hot_standby_feedback": "on", "wal_receiver_status_interval": "1"}
    place = (folder / "pg").resolve()
    shutil.chown(folder, primary.folder.owner(), primary.folder.group())
    through = [] if slot is None else ["-C", "-S", slot]
    primary.run(
        "pg_basebackup", "-D", str(place), "-R", "-c", "fast", "-d", primary.url, *through
    )  # fmt: skip
    replica = None
    try:
        while replica is None or not _starts(replica):
            replica = Server(
                place, version=version(), settings=settings, port=free_port(), tcp=True
            )  # fmt: skip
        yield replica
    finally:
        if replica is not None:
            replica.remove()
        shutil.rmtree(folder, ignore_errors=True)


def until_commits_wait(server: Server) -> None:
    """Wait until the commits of a server wait for its synchronous standby, of which there is none.

    Sessions read the setting by themselves, but the checkpointer tells commits to wait.
    """
    with psycopg.connect(server.url, autocommit=True) as looking:
        with psycopg.connect(server.url, autocommit=True) as probe:
            probe.execute("SET synchronous_commit = on")
            pid = probe.info.backend_pid
            waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"

            def has_waited() -> bool:
                commit = "SELECT pg_logical_emit_message(true, 'probe', '')"
                committing = threading.Thread(target=probe.execute, args=[commit])
                committing.start()
                while not (waiting := looking.execute(waits, [pid]).fetchone() is not None):
                    committing.join(0.005)  # between two looks
                    if not committing.is_alive():
                        break
                if waiting:
                    looking.execute("SELECT pg_cancel_backend(%s)", [pid])
                committing.join()
                return waiting

            observe.until(has_waited, "a commit waits for the standby")


@contextlib.contextmanager
def switched_to(server: Server) -> Iterator[None]:
    """The default alias leads to this cluster."""
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("HOST", "PORT", "NAME")}
    connection.close()
    settings.update(HOST="127.0.0.1", PORT=server.port, NAME="postgres")
    try:
        yield
    finally:
        connection.close()
        settings.update(before)


def migrate(server: Server) -> None:
    """Make the tables in its database, and let no crash take them away."""
    with switched_to(server):
        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute("CHECKPOINT")


def forgetful() -> Server:
    """One that commits asynchronously, with WAL that stays in memory: a crash loses it."""
    return throw_away(wal_writer_delay="10s", synchronous_commit="off")


def keep_wal_in_memory(server: Server) -> None:
    """Stop the process that writes the WAL of asynchronous commits every ten seconds.

    From now until the crash, only what a commit waits for is written. The crash takes five seconds
    longer: the server kills a process that does not end.
    """
    with psycopg.connect(server.url, autocommit=True) as looking:
        [[pid]] = looking.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
        ).fetchall()
    os.kill(pid, signal.SIGSTOP)


def crash(server: Server) -> None:
    """Let it end as in a power cut of the program, and start again."""
    connection.close()
    server.stop("immediate")
    server.start()
