"""Several workers at once, where pytest-xdist is installed: ``pytest -n auto``.

Each has a server of its own (tests/settings.py), for the tests look at all the locks of a server.
"""

import os
from typing import Any

import pytest

TOGETHER = (
    "tests/example/",
    "tests/benchmarks/",
    "tests/faults/test_smoke.py",
    "tests/fencing/test_crash.py",
    "tests/idempotency/test_durability.py",
    "tests/idempotency/test_replication.py",
    "tests/monitor/test_browser.py",
    "tests/test_lock_table_full.py",
)
"""Folders and files whose tests run in one worker, one after the other: they share a server that is
costly to start, or start sites, buyers and browsers, of which one crowd at a time is enough."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: much of the time is spent in waiting for others."""
    return 0 if _server_is_given() else _processors() + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out single tests, the groups first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)

        def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
            """Look at the last scopes only: no further one is given before two tests are left."""
            last = list(workload)[-3:]
            return int(super()._pending_of({scope: workload[scope] for scope in last}))

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if _server_is_given() and getattr(config.option, "tx", None):
        raise pytest.UsageError(
            "The tests look at all the locks of a server, so there can be one worker only on that "
            "of DATABASE_URL: leave -n out, or unset DATABASE_URL."
        )


def _server_is_given() -> bool:
    return "DBLOCK_TEST_SERVER_OF" not in os.environ


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
