"""Many waiters for one lease: what they send while they wait, and how soon the next one has it.

``python -m tests.benchmarks.waiting [WAITERS …]``: a throw-away server, four processes of threads,
a connection for each waiter. Phases: one holder keeps the lease while all wait (statements and the
server's CPU a second); then it lets go, and each waiter in turn holds it for a moment (the time
from a release to the next grant).

The turnstile is the design that was not taken: waiters queue for an advisory lock in a transaction
on a second connection, and only the first in it asks for the lease.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4
IDLE = 4.0
HOLD = 0.01
NAME = "measured"
DESIGNS = ("woken", "woken, fair", "polling", "polling, fair", "turnstile")


def main(counts: list[int]) -> None:
    sys.path.insert(0, str(ROOT / "example_project"))  # where embedded_postgres is
    from tests.helpers import servers

    server = servers.throw_away(max_connections="900")
    os.environ["DATABASE_URL"] = f"postgres://postgres@127.0.0.1:{server.port}/postgres"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    _setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    for waiters in counts:
        for design in DESIGNS:
            print(json.dumps(_measure(server.port, design, waiters)), flush=True)


def _setup() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()


def _measure(port: int, design: str, waiters: int) -> dict[str, Any]:
    from django_dblock import fenced_lock

    shares = [waiters // PROCESSES + (n < waiters % PROCESSES) for n in range(PROCESSES)]
    shares = [share for share in shares if share]
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(len(shares) + 1), context.Queue()
    sent = context.Value("q", 0)
    crowd = [
        context.Process(target=_crowd, args=(design, share, ready, results, sent, port))
        for share in shares
    ]
    with fenced_lock(NAME, ttl=120) as lock:
        for process in crowd:
            process.start()
        ready.wait()
        time.sleep(3)  # all are in the queue, and those that can be woken are
        before, cpu, since = sent.value, _cpu(port), time.monotonic()
        time.sleep(IDLE)
        seconds = time.monotonic() - since
        idle = (sent.value - before) / seconds
        busy = (_cpu(port) - cpu) / seconds
        before, since = sent.value, time.monotonic()
        lock.release()
        events: list[tuple[float, float]] = [results.get(timeout=600) for _ in range(waiters)]
        seconds = time.monotonic() - since
    for process in crowd:
        process.join()
    events.sort()
    gaps = [
        (granted - released) * 1000
        for (_, released), (granted, _) in zip([(0.0, since), *events], events, strict=False)
    ]
    return {
        "design": design,
        "waiters": waiters,
        "statements_a_second_while_waiting": round(idle, 1),
        "server_cpu_percent_while_waiting": round(busy * 100, 1),
        "handover_ms_median": round(statistics.median(gaps), 1),
        "handover_ms_max": round(max(gaps), 1),
        "statements_a_grant": round((sent.value - before) / waiters, 1),
        "grants_a_second": round(waiters / seconds, 1),
    }


def _cpu(port: int) -> float:
    """Seconds of CPU that all processes of the server have used, gone ones included."""
    with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres") as looking:
        [folder] = looking.execute("SHOW data_directory").fetchone()  # type: ignore[misc]
    postmaster = Path(folder, "postmaster.pid").read_text().split()[0]
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if process.name == postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif fields[1] == postmaster:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _crowd(design: str, share: int, ready: Any, results: Any, sent: Any, port: int) -> None:
    _setup()
    from django.db import connection, connections

    from django_dblock import fenced_lock
    from django_dblock.core import notify

    if not design.startswith("woken"):
        notify.Listener.start = lambda _self: False  # type: ignore[method-assign]

    def count(execute: Callable[..., Any], *args: Any) -> Any:
        with sent.get_lock():
            sent.value += 1
        return execute(*args)

    def wait() -> None:
        turnstile = _turnstile(port, sent) if design == "turnstile" else contextlib.nullcontext()
        with connection.execute_wrapper(count):
            with turnstile:
                block = fenced_lock(
                    NAME, ttl=60, timeout=None, fair="fair" in design, heartbeat=False
                )
                block.__enter__()
            granted = time.monotonic()
            time.sleep(HOLD)
            released = time.monotonic()
            block.__exit__(None, None, None)
            results.put((granted, released))
        connections.close_all()

    threads = [threading.Thread(target=wait) for _ in range(share)]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _turnstile(port: int, sent: Any) -> Iterator[None]:
    """Wait in the server's own queue; let the next one in when the lease is ours."""
    with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres") as waiting:
        with sent.get_lock():
            sent.value += 1
        waiting.execute("SELECT pg_advisory_xact_lock(4711)")
        yield


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [1, 20, 200])
