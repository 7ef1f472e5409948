"""Many waiters for one lease: what they send while they wait, and how soon the next one has it.

``python -m tests.benchmarks.waiting [--designs NAME …] -- [WAITERS …]``: a throw-away server, four
processes of threads, a connection for each waiter. Phases: one holder keeps the lease while all
wait (statements, WAL and the server's CPU a second); then it lets go, and each waiter in turn holds
it for a moment (the time from a release to the next grant).

The turnstile is the design that was not taken: waiters queue for an advisory lock in a transaction
on a second connection, and only the first in it asks for the lease. By hand are the two ways that
need no package: to try the pair of ``lease`` every tenth of a second, and the server's own queue of
advisory locks, which is no lease.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
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
IDLE = 3.0
HOLD = 0.01
NAME = "measured"
DESIGNS = (
    "woken", "woken, fair", "polling", "polling, fair", "turnstile", "by hand", "advisory by hand",
    "woken, permit", "polling, permit", "woken, write", "polling, write",
)  # fmt: skip
COMPARED = {
    "by hand": "the pair by hand, tried every 0.1 s",
    "advisory by hand": "pg_advisory_lock by hand: no lease",
    "woken": "fenced_lock(timeout=None)",
}
"""The designs of the curve, and what they are called there."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.waiting")
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=DESIGNS)
    parser.add_argument("waiters", nargs="*", type=int, default=[1, 20, 200])
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "example_project"))  # where embedded_postgres is
    from tests.helpers import servers

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended, too
    server = servers.throw_away(max_connections="1200")
    os.environ["DATABASE_URL"] = f"postgres://postgres@127.0.0.1:{server.port}/postgres"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    _setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from tests.benchmarks import lease

    with psycopg.connect(_address(server.port), autocommit=True) as making:
        making.execute(lease.TABLE)
    for waiters in arguments.waiters:
        for design in arguments.designs:
            print(json.dumps(_measure(server.port, design, waiters)), flush=True)


def _setup() -> None:
    # not those of the benchmarks, whose server is another one, with fewer connections
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()


def _measure(port: int, design: str, waiters: int) -> dict[str, Any]:
    shares = [waiters // PROCESSES + (n < waiters % PROCESSES) for n in range(PROCESSES)]
    shares = [share for share in shares if share]
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(len(shares) + 1), context.Queue()
    sent = context.Value("q", 0)
    crowd = [
        context.Process(
            target=_crowd, args=(design, share, ready, results, sent, port), daemon=True
        )
        for share in shares
    ]
    with _holding(design, port) as release:
        for process in crowd:
            process.start()
        ready.wait()
        _wait_for_arrival(port, design, waiters, sent)
        time.sleep(2)  # those that can be woken listen
        before, cpu, wal, since = sent.value, _cpu(port), _wal(port), time.monotonic()
        time.sleep(IDLE)
        seconds = time.monotonic() - since
        idle = (sent.value - before) / seconds
        busy = (_cpu(port) - cpu) / seconds
        written = (_wal(port) - wal) / seconds
        before, since = sent.value, time.monotonic()
        release()
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
        "wal_bytes_a_second_while_waiting": round(written),
        "handover_ms_median": round(statistics.median(gaps), 1),
        "handover_ms_max": round(max(gaps), 1),
        "statements_a_grant": round((sent.value - before) / waiters, 1),
        "grants_a_second": round(waiters / seconds, 1),
    }


def _wait_for_arrival(port: int, design: str, waiters: int, sent: Any) -> None:
    """Wait until all are in the queue; where there is none, until all have tried."""
    arrived = {
        "advisory by hand": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "by hand": None,
        "turnstile": None,
    }.get(design, "SELECT count(*) FROM django_dblock_fencedticket")
    deadline = time.monotonic() + 120
    with psycopg.connect(_address(port), autocommit=True) as looking:
        while True:
            row = looking.execute(arrived).fetchone() if arrived else (sent.value,)
            if row is not None and row[0] >= waiters:
                return
            assert time.monotonic() < deadline, f"{row} of {waiters} waiters"
            time.sleep(0.1)


def _address(port: int) -> str:
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres"


@contextlib.contextmanager
def _holding(design: str, port: int) -> Iterator[Callable[[], object]]:
    """Hold what all wait for; yield what releases it."""
    if design.endswith("by hand"):
        with psycopg.connect(_address(port), autocommit=True) as holder:
            yield _taken_by_hand(design, holder)
        return
    with _block(design, ttl=120) as lock:
        yield lock.release


def _taken_by_hand(
    design: str, driver: "psycopg.Connection[Any]", wait: Callable[[], object] = lambda: None
) -> Callable[[], object]:
    """Take the lease or the lock by hand, however long that takes; return what releases it."""
    from tests.benchmarks import lease

    if design == "advisory by hand":
        wait()
        driver.execute("SELECT pg_advisory_lock(4712)")
        return lambda: driver.execute("SELECT pg_advisory_unlock(4712)")
    wanted = {"name": NAME, "owner": "host:1:main", "ttl": 120}
    while True:
        wait()
        if (row := driver.execute(lease.TAKE, wanted).fetchone()) is not None:
            token = row[0]
            return lambda: driver.execute(lease.RELEASE, {"name": NAME, "token": token})
        time.sleep(0.1)


def _wal(port: int) -> int:
    """Bytes of WAL that the server has ever written."""
    with psycopg.connect(_address(port)) as looking:
        row = looking.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def _cpu(port: int) -> float:
    """Seconds of CPU that all processes of the server have used, gone ones included."""
    with psycopg.connect(_address(port)) as looking:
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


def _block(design: str, **options: Any) -> Any:
    """What the waiters wait for: a lease, the only permit of a semaphore, or a write lease."""
    from django_dblock import fenced_lock, fenced_rwlock, fenced_semaphore

    if "permit" in design:
        return fenced_semaphore(NAME, permits=1, **options)
    if "write" in design:
        return fenced_rwlock(NAME).write(**options)
    return fenced_lock(NAME, fair="fair" in design, **options)


def _crowd(design: str, share: int, ready: Any, results: Any, sent: Any, port: int) -> None:
    _setup()
    from django.db import connection, connections

    from django_dblock.core import notify

    if not design.startswith("woken"):
        notify.Listener.start = lambda _self: False  # type: ignore[method-assign]

    def count(execute: Callable[..., Any], *args: Any) -> Any:
        with sent.get_lock():
            sent.value += 1
        return execute(*args)

    def counted() -> None:
        with sent.get_lock():
            sent.value += 1

    def wait_by_hand() -> None:
        with psycopg.connect(_address(port), autocommit=True) as driver:
            release = _taken_by_hand(design, driver, counted)
            granted = time.monotonic()
            time.sleep(HOLD)
            released = time.monotonic()
            release()
            results.put((granted, released))

    def wait() -> None:
        turnstile = _turnstile(port, sent) if design == "turnstile" else contextlib.nullcontext()
        with connection.execute_wrapper(count):
            with turnstile:
                block = _block(design, ttl=60, timeout=None, heartbeat=False)
                block.__enter__()
            granted = time.monotonic()
            time.sleep(HOLD)
            released = time.monotonic()
            block.__exit__(None, None, None)
            results.put((granted, released))
        connections.close_all()

    target = wait_by_hand if design.endswith("by hand") else wait
    threads = [threading.Thread(target=target) for _ in range(share)]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _turnstile(port: int, sent: Any) -> Iterator[None]:
    """Wait in the server's own queue; let the next one in when the lease is ours."""
    with psycopg.connect(_address(port)) as waiting:
        with sent.get_lock():
            sent.value += 1
        waiting.execute("SELECT pg_advisory_xact_lock(4711)")
        yield


if __name__ == "__main__":
    main()
