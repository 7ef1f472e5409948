"""``dblock list``: show what is locked, by whom, who waits for it, and which requests are open."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, NamedTuple

from django.core.management.base import CommandParser, OutputWrapper

from django_dblock.cli import console
from django_dblock.cli.console import printable, seconds, short, tolerate_missing_table
from django_dblock.cli.key import KEY_SYNTAX, parse_key
from django_dblock.conf import conf
from django_dblock.core.application_name import named
from django_dblock.fencing.lease_name import lease_name
from django_dblock.inspect import (
    AdvisoryLock,
    FencedLease,
    UnfinishedRequest,
    advisory_locks,
    fenced_leases,
    unfinished_requests,
)

# The advisory locks in ``dblock list``.


ADVISORY_COLUMNS = ("lock", "mode", "state", "pid", "for", "transaction", "user", "client", "query")


def find_advisory_locks(options: dict[str, Any]) -> list[AdvisoryLock]:
    """Return those that the filters leave."""
    locks = advisory_locks(options["using"])
    if options["key"]:
        _, wanted = parse_key(options["key"], options["using"])
        locks = [lock for lock in locks if lock.key_id == wanted]
    if options["blocked"]:
        waited_for = {_place(lock) for lock in locks if not lock.granted}
        locks = [lock for lock in locks if _place(lock) in waited_for]
    return locks


def _place(lock: AdvisoryLock) -> tuple[int, int, bool]:
    return lock.classid, lock.objid, lock.key_id is None


def advisory_row(lock: AdvisoryLock) -> tuple[str, ...]:
    """Put one into words."""
    if lock.granted:
        state = "held"
    else:
        state = f"waits for {', '.join(map(str, lock.blocked_by)) or 'its turn'}"
    number = f"({lock.classid}, {lock.objid})" if lock.key_id is None else str(lock.key_id)
    return (
        lock.name or number,
        "shared" if lock.shared else "exclusive",
        state,
        "prepared" if lock.pid is None else str(lock.pid),
        seconds(lock.waiting),
        "hidden" if lock.hidden else seconds(lock.transaction_age),
        printable(lock.user or ""),
        "hidden" if lock.hidden else lock.client or ("" if lock.pid is None else "local"),
        "hidden" if lock.hidden else printable(" ".join((lock.query or "").split())[:60]),
    )


# The fenced locks in ``dblock list``.


LEASE_COLUMNS = (
    "fenced lock", "slot", "state", "token", "owner", "age", "free in", "renewed", "grants",
    "delay", "waiting",
)  # fmt: skip


def find_leases(options: dict[str, Any]) -> list[FencedLease]:
    """Return those that the filters leave; none where the lock table was never made."""
    name = None
    if options["key"]:
        key, _ = parse_key(options["key"], options["using"])
        name = lease_name(named(key), conf.namespace)
    leases: list[FencedLease] = []
    with tolerate_missing_table("fenced", options["kind"]):
        leases = fenced_leases(options["using"], name=name, expired=not options["held"])
    return [lease for lease in leases if lease.waiting or not options["blocked"]]


def lease_row(lease: FencedLease) -> tuple[str, ...]:
    """Put one into words."""
    return (
        short(printable(lease.name)),
        str(lease.slot),
        lease.state,
        str(lease.token),
        short(printable(lease.owner)),
        seconds(lease.age),
        seconds(None if lease.state == "expired" else lease.free_in),
        seconds(lease.renewed),
        str(lease.grants),
        seconds(lease.lock_delay) if lease.lock_delay else "",
        ", ".join(short(printable(owner)) for owner in lease.waiting),
    )


# The requests with idempotency keys that have not ended, in ``dblock list``.


REQUEST_COLUMNS = (
    "request", "state", "scope", "key", "method", "path", "token", "owner", "age", "lease",
    "expires in", "steps",
)  # fmt: skip


def find_requests(options: dict[str, Any]) -> list[UnfinishedRequest]:
    """Return those that the filters leave; none where the table was never made.

    Nobody waits for a request that can be seen here, and it is no lock on a key.
    """
    if options["key"] or options["blocked"]:
        return []
    requests: list[UnfinishedRequest] = []
    with tolerate_missing_table("idempotency", options["kind"]):
        requests = unfinished_requests(options["using"])
    return [each for each in requests if each.state == "leased" or not options["held"]]


def request_row(request: UnfinishedRequest) -> tuple[str, ...]:
    """Put one into words."""
    return (
        str(request.id),
        request.state,
        printable(request.scope),
        printable(request.key),
        printable(request.method),
        printable(request.path),
        str(request.token),
        printable(request.owner),
        seconds(request.age),
        seconds(request.remaining if request.state == "leased" else None),
        "" if request.expires_in is None else f"{request.expires_in:.0f} s",
        ", ".join(map(printable, request.steps)),
    )


SCHEMA = 1
"""Raised when a field of the JSON changes its meaning or goes; new fields may come without."""

NOTHING = "Nothing is locked."


class _Kind(NamedTuple):
    """How one kind of lock is found and shown."""

    find: Callable[[dict[str, Any]], list[Any]]
    columns: tuple[str, ...]
    row: Callable[[Any], tuple[str, ...]]


_KINDS: dict[str, _Kind] = {
    "advisory": _Kind(find_advisory_locks, ADVISORY_COLUMNS, advisory_row),
    "fenced": _Kind(find_leases, LEASE_COLUMNS, lease_row),
    "idempotency": _Kind(find_requests, REQUEST_COLUMNS, request_row),
}


def add_arguments(parser: CommandParser) -> None:
    """Take the filters, and the form of the answer."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    add_filters(parser)


def add_filters(parser: CommandParser) -> None:
    """Take what to show, and what not."""
    parser.add_argument("--kind", choices=_KINDS, help="only this kind")
    parser.add_argument("--key", nargs="+", metavar="PART", help=f"only this key; {KEY_SYNTAX}")
    parser.add_argument(
        "--name", metavar="PATTERN", help="only names like this; * stands for anything"
    )
    parser.add_argument(
        "--blocked", action="store_true", help="only locks that somebody waits for, and who waits"
    )
    parser.add_argument(
        "--held",
        action="store_true",
        help="no fenced locks that have ended, and no requests that nobody works on",
    )


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Print the locks of the database, a table for each kind that has any, or all as JSON."""
    found = find(options)
    if options["json"]:
        stdout.write(_json(found))
        return
    shown = [kind for kind in found if found[kind]]
    for kind in shown:
        if kind != shown[0]:
            stdout.write("")
        console.write_table(stdout, *as_table(kind, found[kind]))
    if not shown:
        stdout.write(NOTHING)


def find(options: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what the filters leave, by kind; one statement for each."""
    kinds = [kind for kind in _KINDS if options["kind"] in (None, kind)]
    found = {kind: _KINDS[kind].find(options) for kind in kinds}
    if options["name"]:
        for kind in kinds:
            found[kind] = [
                lock for lock in found[kind] if fnmatchcase(lock.name or "", options["name"])
            ]
    return found


def as_table(kind: str, locks: list[Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the names of the columns, and the rows in words."""
    return _KINDS[kind].columns, list(map(_KINDS[kind].row, locks))


def _json(found: dict[str, list[Any]]) -> str:
    """One lock a line: for grep, and because that is many times faster than an indented text."""
    kinds = [f'"schema": {SCHEMA}']
    for kind, locks in found.items():
        rows = ",".join(f"\n    {row}" for row in map(_ENCODER.encode, _flat(locks)))
        kinds.append(f'"{kind}": [{rows}\n  ]' if locks else f'"{kind}": []')
    return "{\n  " + ",\n  ".join(kinds) + "\n}"


_ENCODER = json.JSONEncoder(default=datetime.isoformat)


def _flat(locks: list[Any]) -> Iterator[dict[str, Any]]:
    """All that is nested in one is JSON already."""
    if locks:
        names = [field.name for field in fields(locks[0])]
        for values in map(attrgetter(*names), locks):
            yield dict(zip(names, values, strict=True))
