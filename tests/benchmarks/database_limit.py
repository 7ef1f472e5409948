"""pgbench with the same SQL: what the database does without any Python before it."""

import re
from typing import Any

from tests.benchmarks.measure import Size
from tests.benchmarks.services import Running

COMMIT = r"""
\set id random(1, 1000)
BEGIN;
SELECT pg_advisory_xact_lock(:id);
UPDATE app_counter SET value = value + 1 WHERE id = :id;
COMMIT;
"""
HOT = r"""
BEGIN;
SELECT pg_advisory_xact_lock(1);
SELECT value FROM app_counter WHERE id = 1 \gset
UPDATE app_counter SET value = :value + 1 WHERE id = 1;
COMMIT;
"""
SCRIPTS = {
    "commit": ("Lock, update, commit; 1 client", 1, COMMIT),
    "hot": ("One hot key, a row read and written under it; 8 clients", 8, HOT),
}


def measured(size: Size, running: Running) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": title, "clients": clients, **_run(running, size, clients, script)}
        for name, (title, clients, script) in SCRIPTS.items()
    ]


def _run(running: Running, size: Size, clients: int, script: str) -> dict[str, float]:
    path = running.folder / "pgbench.sql"
    path.write_text(script)
    server = running.postgres
    done = server.run(
        "pgbench", "-h", str(server.socket_folder), "-p", str(server.port), "-U", "postgres",
        "-n", "-M", "simple", "-c", str(clients), "-j", "2",
        "-T", str(max(1, round(size.seconds / 4))), "-f", str(path), "postgres",
    )  # fmt: skip
    latency, speed = (
        float(re.search(pattern, done.stdout)[1])
        for pattern in (r"latency average = ([\d.]+) ms", r"tps = ([\d.]+)")
    )
    return {"turns_per_s": round(speed, 1), "latency_us": round(1000 * latency, 1)}
