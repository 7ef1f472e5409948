"""What the slow path costs: other packages around Django's connection, whose ways are kept.

The stand-ins are those of the tests: a tenant's schema set by each cursor, a driver behind a proxy,
an execute wrapper. Beside each stands what one would write by hand, through the same backend.
"""

import functools
from typing import Any

from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

from tests.benchmarks import commit, lease, once
from tests.benchmarks.measure import Row, Scenario
from tests.benchmarks.ways import ways
from tests.helpers import backends


class Proxied(backends.Proxied):
    """A driver behind a proxy, for this one connection."""

    def get_new_connection(self, conn_params: Any) -> Any:
        return self.proxy(super().get_new_connection(conn_params))


class Wrapped(DatabaseWrapper):
    """An execute wrapper that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute_wrappers.append(lambda execute, *more: execute(*more))


BACKENDS: dict[str, tuple[str, type[DatabaseWrapper]]] = {
    "plain": ("Django's own", DatabaseWrapper),
    "tenants": ("a tenant's schema", backends.Tenants),
    "proxied": ("a driver behind a proxy", Proxied),
    "wrapped": ("an execute wrapper", Wrapped),
}


def alias_of(backend: str, server: str) -> str:
    """Return the alias that leads to the server through the backend; made when first asked for."""
    alias = f"{backend}-{server}"
    if alias not in connections.settings:
        connections.settings[alias] = connections.settings[server]
        connections[alias] = BACKENDS[backend][1](connections.settings[server], alias)
    return alias


def lock(server: str) -> Scenario:
    by_hand, ours, *_ = ways()
    return _scenario(
        "lock", "Lock, update, commit", server, "by hand",
        lambda alias: functools.partial(commit.locked, by_hand, alias),
        lambda alias: functools.partial(commit.locked, ours, alias),
        calls=5,
    )  # fmt: skip


def leases(server: str) -> Scenario:
    return _scenario(
        "lease", "A lease taken and given back", server, "by hand", lease.by_hand,
        lambda alias: functools.partial(lease.fenced, alias), calls=5,
    )  # fmt: skip


def requests(server: str) -> Scenario:
    scenario = _scenario(
        "once", "A view's first call", server, "the view",
        lambda alias: once.called(once.bare(alias)),
        lambda alias: once.called(once.atomic(alias)),
        calls=5,
    )  # fmt: skip
    return Scenario(**{**vars(scenario), "around": once.new_key})


def _scenario(
    name: str, title: str, server: str, limit: str, by_hand: Any, ours: Any, *, calls: int
) -> Scenario:
    rows = []
    for backend, (label, _) in BACKENDS.items():
        alias = alias_of(backend, server)
        rows += [
            Row(f"by-hand-{backend}", f"{limit}, {label}", by_hand(alias), alias=alias),
            Row(backend, f"ours, {label}", ours(alias), alias=alias),
        ]
    near = server == "default"
    return Scenario(
        f"slow-{name}" if near else f"slow-{name}-latency",
        f"{title}, with other packages in between{'' if near else '; 1 ms each way to the server'}",
        rows,
        calls=calls if near else 2,
        alias=server,
        limit=limit,
    )
