"""The servers of one run: started here, and exactly these ended, by process, also on Ctrl-C."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from embedded_postgres import Server

from tests.benchmarks import proxy

# A benchmark without fsync would flatter everybody; these are PostgreSQL's own defaults.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

# For the ten thousand locks that are listed, and for the clients of the site.
ROOM = {"max_locks_per_transaction": "256", "max_connections": "200"}


@dataclass
class Running:
    """What runs, and what was left out for which reason."""

    postgres: Server
    folder: Path
    left_out: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """Start PostgreSQL, two Redis servers and the proxies; put their addresses into os.environ."""
    folder = Path(tempfile.mkdtemp(prefix="dblock-bench-"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = Server(folder / "pg", settings={**DURABLE, **ROOM})
        stack.callback(postgres.remove)
        postgres.start()
        found = Running(postgres, folder)
        socket = postgres.socket_folder / f".s.PGSQL.{postgres.port}"
        port = stack.enter_context(_proxy(socket))
        os.environ["DBLOCK_BENCH_POSTGRES"] = postgres.url
        os.environ["DBLOCK_BENCH_POSTGRES_LATENCY"] = (
            f"postgres://postgres@127.0.0.1:{port}/postgres"
        )
        if reason := _no_redis():
            found.left_out["redis"] = reason
        else:
            quick = stack.enter_context(_redis(folder / "redis", "--appendonly", "no"))
            durable = stack.enter_context(
                _redis(folder / "durable", "--appendonly", "yes", "--appendfsync", "always")
            )
            port = stack.enter_context(_proxy(quick))
            os.environ["DBLOCK_BENCH_REDIS"] = f"unix://{quick}"
            os.environ["DBLOCK_BENCH_REDIS_DURABLE"] = f"unix://{durable}"
            os.environ["DBLOCK_BENCH_REDIS_LATENCY"] = f"redis://127.0.0.1:{port}"
        if importlib.util.find_spec("pglock") is None:
            found.left_out["pglock"] = "django-pglock is not installed (the group 'bench' has it)"
        yield found


def _no_redis() -> str:
    if shutil.which("redis-server") is None:
        return "redis-server is not installed (Debian package redis-server)"
    if importlib.util.find_spec("redis") is None:
        return "redis-py is not installed (the group 'bench' has it)"
    return ""


@contextlib.contextmanager
def _redis(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    socket = folder / "socket"
    command = [
        "redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(folder),
        "--save", "", *options,
    ]  # fmt: skip
    with process(command, stdout=subprocess.DEVNULL):
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield socket


@contextlib.contextmanager
def _proxy(target: Path) -> Iterator[int]:
    """Put the latency before a unix socket; yield the port on 127.0.0.1."""
    command = [sys.executable, "-m", proxy.__name__, str(target)]
    with process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield int(started.stdout.readline())


@contextlib.contextmanager
def process(command: list[str], **more: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a program in a session of its own: Ctrl-C is for the benchmark, which then ends it."""
    started = subprocess.Popen(command, start_new_session=True, **more)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        for pipe in (started.stdin, started.stdout):
            if pipe is not None:
                pipe.close()
