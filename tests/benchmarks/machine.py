"""On what it was measured: numbers without their machine mean nothing."""

import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from django.db import connection, connections

from tests.benchmarks import peers
from tests.benchmarks.services import Running

PACKAGES = ("django-dblock", "Django", "psycopg", "psycopg-binary", "django-pglock", "redis")
SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


def described(running: Running) -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "fsync_us": _fsync(running.folder),
        "round_trip_us": {alias: _round_trip(alias) for alias in ("default", "latency")},
        "postgresql_settings": {name: _show(name) for name in SETTINGS},
    }


def versions() -> dict[str, str]:
    found = {"PostgreSQL": _show("server_version"), "Python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if peers.has_redis():
        said = subprocess.run(
            ["redis-server", "--version"], stdout=subprocess.PIPE, text=True, check=True
        )
        found["Redis"] = re.search(r"v=(\S+)", said.stdout)[1]
    return found


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.machine()


def _show(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        return cursor.fetchone()[0]


def _fsync(folder: Path) -> float:
    """What the disk takes for 8 kB, or says that it takes."""
    path = folder / "fsync"
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    path.unlink()
    return round(1e6 * median(times), 1)


def _round_trip(alias: str) -> float:
    times = []
    with connections[alias].cursor() as cursor:
        for _ in range(50):
            started = time.perf_counter()
            cursor.execute("SELECT 1")
            times.append(time.perf_counter() - started)
    return round(1e6 * median(times), 1)
