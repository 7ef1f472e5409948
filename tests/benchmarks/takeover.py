"""How soon somebody else leads, and how soon workers share partitions evenly again.

``python -m tests.benchmarks.takeover [--ttl SECONDS] [--rounds N] [--workers N …] [--counts N …]``:
a throw-away server and real processes. A leader is ended by SIGTERM, by SIGKILL and by SIGSTOP, at
a random moment between two renewals, while a standby waits. Workers join, leave and die; between
that, the server's commits and WAL are counted while nothing changes. Times are multiples of the
ttl.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = multiprocessing.get_context("fork")
PATIENCE = 120.0
IDLE = 6.0

_ROW = "SELECT count(*) FROM django_dblock_fencedticket WHERE expires_at > clock_timestamp()"
_STATE = """
SELECT (SELECT sum(xact_commit) FROM pg_stat_database), pg_current_wal_insert_lsn() - '0/0'
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.takeover")
    parser.add_argument("--ttl", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--counts", nargs="*", type=int, default=[64, 1024])
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "example_project"))  # where embedded_postgres is
    from tests.helpers import servers

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended, too
    server = servers.throw_away(max_connections="200")
    os.environ["DATABASE_URL"] = f"postgres://postgres@127.0.0.1:{server.port}/postgres"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0)
    connections.close_all()  # before the forks
    address = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres"
    for name in ("SIGTERM", "SIGKILL", "SIGSTOP"):
        times = [_elect(address, name, arguments.ttl, n) for n in range(arguments.rounds)]
        _say(what="leader", after=name, median=statistics.median(times), longest=max(times))
    for count in arguments.counts:
        for workers in arguments.workers:
            _say(what="partitions", **_share(address, workers, count, arguments.ttl))


def _say(**row: Any) -> None:
    rounded = {name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}
    print(json.dumps(rounded), flush=True)


def _elect(address: str, name: str, ttl: float, number: int) -> float:
    """Return the time from a signal to the leader until the standby leads, as multiples of ttl."""
    elected = PROCESSES.Queue()
    key = f"{name}:{number}"
    with _running(_lead, key, ttl, elected) as leader:
        elected.get(timeout=PATIENCE)
        with _running(_lead, key, ttl, elected):
            with psycopg.connect(address, autocommit=True) as looking:
                _until(lambda: looking.execute(_ROW).fetchone() == (1,))
            time.sleep(1 + random.uniform(0, ttl / 3))  # it listens; and some time after a renewal
            since = time.monotonic()
            os.kill(leader.pid, getattr(signal, name))
            return float((elected.get(timeout=PATIENCE) - since) / ttl)


def _lead(key: str, ttl: float, elected: Any) -> None:
    from django_dblock import leadership

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for _ in leadership(key, ttl=ttl, stop=stop):
        elected.put(time.monotonic())  # one clock for all processes of the machine
        stop.wait()


def _share(address: str, workers: int, count: int, ttl: float) -> dict[str, Any]:
    """Return how long the workers take to share evenly, and what that costs."""
    owned = PROCESSES.Array("i", [-1] * (workers + 1))
    key = f"{workers}:{count}"
    crew = [_started(_work, key, count, ttl, owned, number) for number in range(workers)]
    try:
        _until(lambda: -1 not in owned[:workers])
        first = _until_even(owned, count, ttl, range(workers))
        before, since = _state(address), time.monotonic()
        time.sleep(IDLE)
        seconds = time.monotonic() - since
        commits, wal = ((b - a) / seconds for a, b in zip(before, _state(address), strict=True))
        crew.append(_started(_work, key, count, ttl, owned, workers))
        _until(lambda: owned[workers] != -1)
        joined = _until_even(owned, count, ttl, range(workers + 1))
        os.kill(crew[workers].pid, signal.SIGTERM)
        crew.pop().join()
        left = _until_even(owned, count, ttl, range(workers))
        died = None
        if workers > 1:
            os.kill(crew[0].pid, signal.SIGKILL)
            died = _until_even(owned, count, ttl, range(1, workers))
    finally:
        for process in crew:
            _end(process)
    return {
        "workers": workers, "count": count, "even_after_start": first, "after_join": joined,
        "after_leave": left, "after_death": died, "commits_a_second": commits,
        "wal_bytes_a_second": wal,
    }  # fmt: skip


def _work(key: str, count: int, ttl: float, owned: Any, number: int) -> None:
    from django_dblock import partitions

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with partitions(key, count=count, ttl=ttl) as mine:
        while not stop.wait(0.05):
            owned[number] = len(mine)
            for _ in mine:
                pass


def _until_even(owned: Any, count: int, ttl: float, live: range) -> float:
    share, rest = divmod(count, len(live))
    even = sorted([share] * (len(live) - rest) + [share + 1] * rest)
    since = time.monotonic()
    _until(lambda: sorted(owned[number] for number in live) == even)
    return (time.monotonic() - since) / ttl


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def _state(address: str) -> tuple[int, int]:
    """Return how many transactions were committed, and how many bytes of WAL were written."""
    with psycopg.connect(address) as looking:
        row = looking.execute(_STATE).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _started(target: Callable[..., None], *arguments: Any) -> Any:
    process = PROCESSES.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@contextmanager
def _running(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    process = _started(target, *arguments)
    try:
        yield process
    finally:
        _end(process)


def _end(process: Any) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)  # a stopped process, too
    process.join()


if __name__ == "__main__":
    main()
