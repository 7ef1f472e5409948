"""``python -m tests.benchmarks.purge``: a purge of expired keys beside traffic, and what rows take.

A cluster of its own with the server's defaults for durability; expired rows with keys of 36
characters and answers of 300 bytes, in no order; processes that run ``run_once`` with new keys, and
repeat each once. Measured are the traffic before, during and after the purge, the purge itself, the
waits for locks that a sampler sees, and the sizes.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]

FILL = """
INSERT INTO django_dblock_idempotencykey (
    scope, key, fingerprint, fingerprint_version, method, path, status_code, headers, body,
    body_kind, token, owner, steps, created_at, completed_at, expires_at
)
SELECT
    'user:' || n %% 10000, gen_random_uuid()::text, sha256(n::text::bytea), 1, 'POST',
    '/api/payments/', 201, '{"Content-Type": "application/json"}',
    convert_to(rpad('{"id": ' || n || ', "note": "', 298, md5(random()::text)) || '"}', 'UTF8'),
    'plain', 1, '', '{}', now() - interval '2 days', now() - interval '2 days',
    -- in the order of the rows, as with one retention for all; a minute to and fro
    now() - interval '1 hour' + (n::float8 / %(rows)s - 1) * interval '1 day'
        + random() * interval '1 minute'
FROM generate_series(1, %(rows)s) AS n
"""

SIZES = """
SELECT
    pg_table_size('django_dblock_idempotencykey'),
    pg_indexes_size('django_dblock_idempotencykey'),
    (SELECT json_object_agg(indexrelname, pg_relation_size(indexrelid))
        FROM pg_stat_user_indexes WHERE relname = 'django_dblock_idempotencykey')
"""

# Who waits for a heavyweight lock now, and for how long; waits to extend a file are not for rows.
WAITS = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8, count(*)
FROM pg_locks
WHERE NOT granted AND waitstart IS NOT NULL AND locktype <> 'extend'
"""


def main() -> None:
    arguments = _arguments()
    sys.path.insert(0, str(ROOT / "example_project"))  # where embedded_postgres is
    from embedded_postgres import Server

    from tests.benchmarks.services import DURABLE

    with tempfile.TemporaryDirectory(prefix="dblock-purge-") as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder) / "pg", settings=DURABLE)
        try:
            server.start()
            os.environ["DBLOCK_BENCH_POSTGRES"] = server.url
            os.environ["DBLOCK_BENCH_POSTGRES_LATENCY"] = server.url
            found = measured(arguments.rows, arguments.batch, arguments.clients, arguments.seconds)
        finally:
            server.remove()
    print(json.dumps(found, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.purge", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=3, help="processes of traffic")
    parser.add_argument("--seconds", type=float, default=20, help="of traffic before and after")
    return parser.parse_args()


def _set_up() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
    import django

    django.setup()


def measured(rows: int, batch: int, clients: int, seconds: float) -> dict[str, Any]:
    _set_up()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", "django_dblock", verbosity=0)
    with connection.cursor() as cursor:
        _say(f"Making {rows:,} expired rows …")
        cursor.execute(FILL, {"rows": rows})
        cursor.execute("VACUUM (ANALYZE) django_dblock_idempotencykey")
        cursor.execute("CHECKPOINT")
        cursor.execute(SIZES)
        table, indexes, each = cursor.fetchone()
    connection.close()
    context = get_context("spawn")
    stop = context.Event()
    pipes = []
    processes = []
    for _ in range(clients):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_traffic, args=(stop, theirs), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()  # it is warm
    load = round(os.getloadavg()[0], 1)
    _say("Traffic alone …")
    started = time.time()
    time.sleep(seconds)  # what is measured is time
    _say("Traffic and the purge …")
    purge_began = time.time()
    purge = _purge(batch)
    purge_ended = time.time()
    _say("Traffic alone …")
    time.sleep(seconds)
    ended = time.time()
    stop.set()
    calls = [call for pipe in pipes for call in pipe.recv()]
    for process in processes:
        process.join()
    return {
        "rows": rows,
        "batch": batch,
        "clients": clients,
        "table_bytes": table,
        "indexes_bytes": indexes,
        "index_bytes": each,
        "purge": purge,
        "before": _summary(calls, started, purge_began),
        "during": _summary(calls, purge_began, purge_ended),
        "after": _summary(calls, purge_ended, ended),
        "load_before": load,
        "cores": len(os.sched_getaffinity(0)),
    }


def _traffic(stop: Any, pipe: Any) -> None:
    """Run new keys, and repeat each, until told to stop; send when each began, and its time."""
    _set_up()
    from django_dblock import run_once

    answer = {"paid": True, "note": "x" * 270}
    run_once(str(uuid4()), work=lambda: answer)
    pipe.send("warm")
    calls = []
    while not stop.is_set():
        key = str(uuid4())
        for _ in range(2):
            began, clock = time.time(), time.perf_counter()
            run_once(key, work=lambda: answer)
            calls.append((began, time.perf_counter() - clock))
    pipe.send(calls)


def _purge(batch: int) -> dict[str, Any]:
    from django.db import connection

    from django_dblock.idempotency.operations import purge_in_batches

    done = threading.Event()
    longest = [0.0, 0]
    sampler = threading.Thread(target=_sample, args=(done, longest))
    sampler.start()
    times = []
    removed = 0
    began = clock = time.perf_counter()
    for count in purge_in_batches(batch=batch):
        now = time.perf_counter()
        times.append(now - clock)
        clock = now
        removed += count
    seconds = clock - began
    done.set()
    sampler.join()
    connection.close()
    return {
        "removed": removed,
        "seconds": round(seconds, 1),
        "rows_per_second": round(removed / seconds),
        "batch_ms": _percentiles(times),
        "first_hundred_batches_s": round(sum(times[:100]), 2),
        "last_hundred_batches_s": round(sum(times[-101:-1]), 2),
        "lock_waits_seen": longest[1],
        "longest_lock_wait_ms": round(1000 * longest[0], 1),
    }


def _sample(done: threading.Event, longest: list[Any]) -> None:
    """Ask every five milliseconds who waits for a lock."""
    from django.db import connection

    with connection.cursor() as cursor:
        while not done.wait(0.005):
            cursor.execute(WAITS)
            waited, count = cursor.fetchone()
            longest[0] = max(longest[0], waited)
            longest[1] += count
    connection.close()


def _summary(calls: list[tuple[float, float]], began: float, ended: float) -> dict[str, Any]:
    times = [taken for at, taken in calls if began <= at < ended]
    return {
        "seconds": round(ended - began, 1),
        "calls_per_second": round(len(times) / (ended - began)),
        "call_ms": _percentiles(times),
    }


def _percentiles(times: list[float]) -> dict[str, float]:
    cuts = quantiles(times, n=1000, method="inclusive") if len(times) > 1 else [times[0]] * 999
    return {
        "p50": round(1000 * cuts[499], 2),
        "p95": round(1000 * cuts[949], 2),
        "p99": round(1000 * cuts[989], 2),
        "max": round(1000 * max(times), 1),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
