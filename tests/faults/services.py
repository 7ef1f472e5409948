"""The servers of one run: started when first asked for; exactly these ended, also on Ctrl-C."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import psycopg
from embedded_postgres import Server, ServerError, binaries

from tests.benchmarks.services import _no_redis, _redis
from tests.faults.clock import FAKED
from tests.helpers.servers import free_port

SETTINGS = {
    # A crash of the server is no power cut: what it has handed to the system is there again.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "120",
    "deadlock_timeout": "100ms",
    "log_min_messages": "panic",
}


class Services:
    """What runs. Use it in a ``with`` statement."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._servers: dict[int, Server] = {}
        self._crews: dict[bool, Crew] = {}
        self.left_out: dict[str, str] = {}
        # Workers tell of what they bring on themselves through this.
        self.messages, self.channel = os.pipe()
        os.set_blocking(self.messages, False)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="dblock-faults-"))
        self.folder.chmod(0o755)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        if not _no_redis():
            socket = self._stack.enter_context(_redis(self.folder / "redis", "--appendonly", "no"))
            os.environ["DBLOCK_FAULTS_REDIS"] = f"unix://{socket}"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def crew(self, *, faked: bool) -> "Crew":
        """Return the process that forks workers, or the one whose workers' clocks can be set."""
        if faked not in self._crews or not self._crews[faked].lives():
            more = {"LD_PRELOAD": str(libfaketime()), **FAKED} if faked else {}
            self._crews[faked] = Crew(self.folder / f"crew-{faked}.log", self.channel, **more)
            self._stack.callback(self._crews[faked].close)
        return self._crews[faked]

    def postgres(self, version: int) -> Server:
        """Return the server of this major version, with the tables made; it runs.

        One that a trial could not start again is replaced, so that it is that trial's loss alone.
        """
        if version in self._servers:
            try:
                self._servers[version].start()
            except ServerError:
                self._servers.pop(version).remove()
        if version not in self._servers:
            folder = Path(tempfile.mkdtemp(prefix=f"pg{version}-", dir=self.folder))
            server = Server(folder, version=version, settings=SETTINGS, port=free_port(), tcp=True)
            self._stack.callback(server.remove)
            server.start()
            make_tables(server)
            self._servers[version] = server
        return self._servers[version]


def versions() -> list[int]:
    """The major versions that are on this machine, the newest first."""
    found = []
    for version in (18, 16, 15):
        with contextlib.suppress(LookupError):
            binaries(version)
            found.append(version)
    return found


def libfaketime() -> Path:
    """Return the library that sets a process's clocks.

    Raises:
        LookupError: it is not on this machine.
    """
    for file in sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")):
        return file
    raise LookupError("libfaketime is not installed (Debian package faketime)")


TENANT = "tenant"
"""The schema of the trials whose backend has one; with all tables, as ``public`` has them."""


def make_tables(server: Server) -> None:
    from django.core.management import call_command
    from django.db import connection

    from tests.faults.models import MODELS

    connection.close()
    connection.settings_dict["PORT"] = server.port
    with connect(server) as database:
        database.execute(f"CREATE SCHEMA {TENANT}")
    for schema in ("public", TENANT):
        connection.settings_dict["OPTIONS"]["options"] = f"-c search_path={schema}"
        call_command("migrate", "django_dblock", verbosity=0)
        with connection.schema_editor() as editor:
            for model in MODELS:
                editor.create_model(model)
        connection.close()
    del connection.settings_dict["OPTIONS"]["options"]


def url(server: Server) -> str:
    """How a plain psycopg connection reaches it."""
    return f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres connect_timeout=5"


def connect(server: Server, *, tenant: bool = False) -> psycopg.Connection[Any]:
    path = f"-c search_path={TENANT}" if tenant else ""
    return psycopg.connect(url(server), autocommit=True, options=path)


class Crew:
    """The process that forks workers; see ``crew.py``."""

    def __init__(self, log: Path, channel: int, **environment: str) -> None:
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crew"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **environment}, pass_fds=(channel,), start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        self._answer()  # it is ready

    def start(self, orders: str) -> int:
        """Fork a worker; return its process id."""
        assert self._process.stdin
        self._process.stdin.write(orders + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait(30)
            raise RuntimeError(f"the crew has ended: {Path(self._log.name).read_text()[-2000:]}")
        return int(answer)

    def lives(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it, and all its workers with it."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended before
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
