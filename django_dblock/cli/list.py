"""``dblock list``: show locks with their holders and waiters, and requests without a response."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, NamedTuple

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.cli import console
from django_dblock.cli.console import note_unreadable, printable, seconds
from django_dblock.cli.key import KEY_SYNTAX, parse_key
from django_dblock.conf import conf
from django_dblock.coordination.latch import alias_for as latches_alias
from django_dblock.core.application_name import named, without_labels
from django_dblock.fencing.lease_name import lease_name, meaning_of, names_of, shows_namespace
from django_dblock.fencing.store import alias_for as leases_alias
from django_dblock.idempotency.store import alias_for as requests_alias
from django_dblock.inspect import (
    AdvisoryLock,
    AwaitedLatch,
    BlockingSession,
    FencedLease,
    UnfinishedRequest,
    awaited_latches,
    fenced_leases,
    lock_waits,
    short_wait,
    unfinished_requests,
)

Found = dict[str, list[Any]]
"""The rows to show, by kind."""

# The advisory locks in ``dblock list``.


ADVISORY_COLUMNS = (
    "lock", "mode", "state", "pid", "program", "for", "transaction", "user", "client",
    "last statement",
)  # fmt: skip


def find_advisory_locks(options: dict[str, Any]) -> Found:
    """Return the locks that match the filters, and the sessions that block them."""
    # The number of a key is that of its namespace: then no label has to show it.
    own_namespace = not (options["all_namespaces"] or options["key"])
    waits = lock_waits(options["using"], own_namespace=own_namespace)
    if waits.standby:
        options["notes"].append(
            "this server is a standby: the advisory locks of the primary are not shown, and leases "
            "and requests may be outdated. Pass --using with the alias of the primary."
        )
    if own_namespace and _only_own(options) and conf.labels == "off":
        options["notes"].append(
            "advisory locks without a label are not shown: DBLOCK_LABELS is off, so nobody can "
            "tell their namespace. --all-namespaces shows all."
        )
    locks = waits.locks
    if options["key"]:
        _, number = parse_key(options["key"], options["using"])
        locks = [lock for lock in locks if lock.key_id == number]
    if options["blocked"]:
        waited_for = {_place(lock) for lock in locks if not lock.granted}
        locks = [lock for lock in locks if _place(lock) in waited_for or lock.waits_for]
    if options["name"]:
        locks = [lock for lock in locks if _matches(lock.name, options)]
    return {"blockers": _in_front(waits.blockers, locks), "advisory": locks}


def _place(lock: AdvisoryLock) -> tuple[int, int, bool]:
    return lock.classid, lock.objid, lock.key_id is None


def _in_front(blockers: list[BlockingSession], locks: list[AdvisoryLock]) -> list[BlockingSession]:
    """Return the sessions that block one of these locks' backends, directly or behind others."""
    blocking = {pid or None for lock in locks for pid in lock.blocked_by}
    by_pid = {each.pid: each for each in blockers}
    ahead = [by_pid[pid] for pid in blocking if pid in by_pid]
    found = set(blocking)
    while ahead:
        for pid in {pid or None for pid in ahead.pop().blocked_by} - found:
            found.add(pid)
            ahead += [by_pid[pid]] if pid in by_pid else []
    return [each for each in blockers if each.pid in found]


def advisory_row(lock: AdvisoryLock) -> tuple[str, ...]:
    """Return the cells of an advisory lock."""
    number = f"({lock.classid}, {lock.objid})" if lock.key_id is None else str(lock.key_id)
    return (
        lock.name or number,
        "shared" if lock.shared else "exclusive",
        _state(lock),
        "prepared" if lock.pid is None else str(lock.pid),
        printable(without_labels(lock.application_name or "")),
        seconds(lock.waiting),
        "hidden" if lock.hidden else seconds(lock.transaction_age),
        printable(lock.user or ""),
        "hidden" if lock.hidden else lock.client or ("" if lock.pid is None else "local"),
        "hidden" if lock.hidden else _last_statement(lock),
    )


def _state(lock: AdvisoryLock) -> str:
    blocked_by = ", ".join(str(pid or "prepared") for pid in lock.blocked_by)
    if not lock.granted:
        return f"waits for {blocked_by or 'its turn'}, place {lock.place}"
    if lock.waits_for is not None:
        return f"held, waits for {printable(lock.waits_for)} behind {blocked_by}"
    return "held"


def _last_statement(lock: AdvisoryLock) -> str:
    if lock.last_statement is not None:
        return f"{lock.last_statement} as its last statement" if lock.granted else ""
    return _one_line(lock.query)


def _one_line(query: str | None) -> str:
    return printable(" ".join((query or "").split()))


# The sessions without an advisory lock that block the others.


BLOCKER_COLUMNS = (
    "pid", "program", "keeps waiting", "holds", "waits for", "transaction", "user", "client",
    "last statement",
)  # fmt: skip


def blocker_row(session: BlockingSession) -> tuple[str, ...]:
    """Return the cells of a session that blocks holders or waiters of advisory locks."""
    waits_for = ""
    if session.waits_for is not None:
        behind = ", ".join(str(pid or "prepared") for pid in session.blocked_by)
        waits_for = f"{printable(session.waits_for)} behind {behind}"
    return (
        "prepared" if session.pid is None else str(session.pid),
        printable(session.program),
        str(session.keeps),
        printable(", ".join(session.holds)),
        waits_for,
        "hidden" if session.hidden else seconds(session.transaction_age),
        printable(session.user or ""),
        "hidden" if session.hidden else session.client or ("" if session.pid is None else "local"),
        "hidden" if session.hidden else _one_line(session.query),
    )


# The leases in ``dblock list``.


LEASE_COLUMNS = (
    "lease", "role", "slot", "state", "token", "owner", "age", "free in", "renewed", "grants",
    "delay", "waiting",
)  # fmt: skip


def find_leases(options: dict[str, Any]) -> Found:
    """Return the leases that match the filters; none if the table does not exist."""
    names = None
    if options["key"]:
        key, _ = parse_key(options["key"], options["using"])
        names = names_of(lease_name(named(key), conf.namespace))
    else:
        _note_namespace("fenced", options)
    # The statement knows no sets: what it reads for "a*", and so its limit, is noted for "a[0-9]".
    pattern, opened, _ = (options["name"] or "").partition("[")
    leases: list[FencedLease] = []
    with note_unreadable("fenced", options), short_wait(leases_alias(options["using"])):
        leases = fenced_leases(
            options["using"],
            name=names,
            expired=not options["held"],
            pattern=f"{pattern}*" if opened else options["name"],
            limit=_limit(options),
            own_namespace=not options["all_namespaces"] and names is None,
        )
    ended = sum(lease.state == "expired" for lease in leases)
    _note_limit(options, ended, "Leases that have ended", "--name, --held or --limit")
    if opened:
        leases = [
            lease
            for lease in leases
            if _matches(lease.name, options) or _matches(lease.key, options)
        ]
    if options["blocked"]:
        wanted = {lease.name for lease in leases if lease.waiting}
        leases = [lease for lease in leases if lease.name in wanted]
    return {"fenced": leases}


def lease_row(lease: FencedLease) -> tuple[str, ...]:
    """Return the cells of a row."""
    key, _, role = meaning_of(lease.name, lease.slot)
    return (
        printable(key),
        role,
        str(lease.slot),
        lease.state,
        str(lease.token),
        printable(lease.owner),
        seconds(lease.age),
        seconds(None if lease.state == "expired" else lease.free_in),
        seconds(lease.renewed),
        str(lease.grants),
        seconds(lease.lock_delay) if lease.lock_delay else "",
        ", ".join(printable(owner) for owner in lease.waiting),
    )


# The latches that somebody waits for, in ``dblock list``.


LATCH_COLUMNS = ("latch", "parts done", "latest part", "waiting")


def find_latches(options: dict[str, Any]) -> Found:
    """Return the latches that match the filters; none if a table does not exist."""
    name = None
    if options["key"]:
        key, _ = parse_key(options["key"], options["using"])
        name = lease_name(named(key), conf.namespace)
    else:
        _note_namespace("latches", options)
    latches: list[AwaitedLatch] = []
    with note_unreadable("latches", options), short_wait(latches_alias(options["using"])):
        latches = awaited_latches(
            options["using"],
            name=name,
            pattern=options["name"],
            own_namespace=not options["all_namespaces"] and name is None,
        )
    return {"latches": latches}


def latch_row(latch: AwaitedLatch) -> tuple[str, ...]:
    """Return the cells of a row."""
    return (
        printable(latch.name),
        str(latch.parts),
        seconds(latch.latest),
        ", ".join(printable(owner) for owner in latch.waiting),
    )


# The requests with idempotency keys that have not ended, in ``dblock list``.


REQUEST_COLUMNS = (
    "request", "state", "scope", "key", "method", "path", "token", "owner", "age", "lease",
    "expires in", "steps",
)  # fmt: skip


def find_requests(options: dict[str, Any]) -> Found:
    """Return the requests that match the filters; none if the table does not exist.

    With ``--key`` or ``--blocked`` the list is empty: a request is no lock on a key, and has no
    queue of waiters.
    """
    if options["key"] or options["blocked"]:
        return {"idempotency": []}
    requests: list[UnfinishedRequest] = []
    with note_unreadable("idempotency", options), short_wait(requests_alias(options["using"])):
        requests = unfinished_requests(options["using"], limit=_limit(options))
    states = Counter(request.state for request in requests)
    if _only_own(options):
        namespace = conf.namespace
        requests = [request for request in requests if request.namespace == namespace]
    _note_limit(options, max(states.values(), default=0), "Requests in one state", "--limit")
    if options["held"]:
        requests = [request for request in requests if request.state == "leased"]
    return {"idempotency": [request for request in requests if _matches(request.name, options)]}


def request_row(request: UnfinishedRequest) -> tuple[str, ...]:
    """Return the cells of a row."""
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
"""The version of the JSON, raised if a field changes its meaning or is removed."""


DEFAULT_LIMIT = 1000
"""Rows of idle leases, and of requests in each state, that are read unless ``--limit`` says so."""


_KINDS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "advisory": find_advisory_locks,
    "fenced": find_leases,
    "latches": find_latches,
    "idempotency": find_requests,
}

_TABLES: dict[str, tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]]] = {
    "blockers": (BLOCKER_COLUMNS, blocker_row),
    "advisory": (ADVISORY_COLUMNS, advisory_row),
    "fenced": (LEASE_COLUMNS, lease_row),
    "latches": (LATCH_COLUMNS, latch_row),
    "idempotency": (REQUEST_COLUMNS, request_row),
}


def add_arguments(parser: CommandParser) -> None:
    """Add the filters, and the output format."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    add_filters(parser)


def add_filters(parser: CommandParser) -> None:
    """Add the options that choose what is shown."""
    parser.add_argument("--kind", choices=_KINDS, help="only this kind")
    parser.add_argument("--key", nargs="+", metavar="PART", help=f"only this key; {KEY_SYNTAX}")
    parser.add_argument(
        "--name", metavar="PATTERN", help="only names that match; * stands for any text"
    )
    parser.add_argument(
        "--blocked", action="store_true", help="only locks that have waiters, and the waiters"
    )
    parser.add_argument(
        "--held",
        action="store_true",
        help="leave out leases that have ended, and requests without a worker",
    )
    parser.add_argument(
        "--all-namespaces",
        action="store_true",
        help="also locks of other namespaces and programs, where DBLOCK_NAMESPACE separates them",
    )
    parser.add_argument(
        "--limit", type=int, default=DEFAULT_LIMIT, metavar="ROWS",
        help=f"how many ended leases, and requests in each state, to show; {DEFAULT_LIMIT:,} if "
        f"not given, 0 for all",
    )  # fmt: skip


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Print the locks of the database, a table for each kind that has any, or all as JSON.

    Raises:
        CommandError: the kind given by ``--kind`` can't be read, or an option is not valid.
    """
    listing = find(options)
    if options["json"]:
        stdout.write(_json(listing))
        return
    shown = [kind for kind, rows in listing.found.items() if rows]
    for kind in shown:
        if kind != shown[0]:
            stdout.write("")
        console.write_table(stdout, *as_table(kind, listing.found[kind]))
    if not shown:
        stdout.write(nothing(options, listing.notes))
    for note in listing.notes:
        stdout.write(f"Note: {printable(note)}")


class Listing(NamedTuple):
    """The locks, by kind, and notes on rows that the lists leave out."""

    found: Found
    notes: list[str]


def find(options: dict[str, Any]) -> Listing:
    """Return the rows that match the filters, by kind; one statement for each kind.

    Raises:
        CommandError: the kind given by ``--kind`` can't be read, or an option is not valid.
    """
    for option, empty in (("key", [""]), ("name", "")):
        if options[option] == empty:
            raise CommandError(f"--{option} is empty: an unset variable?")
    if options["limit"] < 0:
        raise CommandError(f"--limit {options['limit']}: 0 rows at least.")
    options = {**options, "notes": []}
    found: Found = {}
    for kind, find_kind in _KINDS.items():
        if options["kind"] in (None, kind):
            found.update(find_kind(options))
    return Listing(found, options["notes"])


def nothing(options: dict[str, Any], notes: list[str]) -> str:
    """Return the line to print if there are no rows: it never claims more than was looked at."""
    if notes:
        return "There is nothing to show."
    if any(options[name] for name in ("kind", "key", "name", "blocked", "held")):
        return "Nothing matches."
    if _only_own(options):
        return (
            f"Nothing is locked in the namespace {conf.namespace!r}. --all-namespaces shows all "
            f"locks."
        )
    return "Nothing is locked."


def _only_own(options: dict[str, Any]) -> bool:
    """Return whether only the locks of the current namespace are shown."""
    return conf.has_namespaces and not options["all_namespaces"]


def _note_namespace(kind: str, options: dict[str, Any]) -> None:
    if _only_own(options) and not shows_namespace(conf.namespace):
        options["notes"].append(
            f"{kind} is not shown: no name shows the namespace {conf.namespace!r}, as it reads as "
            f"a number, or has ':' or '~'. --all-namespaces shows all."
        )


def _matches(name: str | None, options: dict[str, Any]) -> bool:
    return not options["name"] or fnmatchcase(name or "", options["name"])


def _limit(options: dict[str, Any]) -> int | None:
    return None if options["limit"] < 1 else options["limit"]


def _note_limit(options: dict[str, Any], count: int, what: str, others: str) -> None:
    limit = _limit(options)
    if limit is not None and count >= limit:
        options["notes"].append(
            f"{what}: only {limit:,} are shown. {others} shows others; 'dblock purge' removes what "
            f"is no longer needed."
        )


def as_table(kind: str, rows: list[Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the column names, and the cells of each row."""
    columns, row = _TABLES[kind]
    return columns, list(map(row, rows))


def _json(listing: Listing) -> str:
    # One lock a line: for grep, and many times faster than indented text.
    kinds = [f'"schema": {SCHEMA}']
    for kind, locks in listing.found.items():
        rows = ",\n    ".join(_chunks(locks))
        kinds.append(f'"{kind}": [\n    {rows}\n  ]' if locks else f'"{kind}": []')
    kinds.append(f'"notes": {json.dumps(listing.notes)}')
    return "{\n  " + ",\n  ".join(kinds) + "\n}"


_ENCODER = json.JSONEncoder(default=datetime.isoformat)

_CHUNK = 100
"""Rows that are encoded by one call."""

_MARK = "\0"
"""Separates the rows of a chunk. PostgreSQL stores it in no text and no jsonb, so no row has it."""

_MARK_AS_JSON = f", {json.dumps(_MARK)}, "


def _chunks(locks: list[Any]) -> Iterator[str]:
    """Return locks as JSON objects, each on a line of its own, many of them in each text."""
    # Each call of encode() makes a new encoder: with a call for each row, the rows take a fifth
    # more time. The encoder separates rows as it separates their fields, hence the mark.
    for start in range(0, len(locks), _CHUNK):
        rows = _flat(locks[start : start + _CHUNK])
        marked = [item for row in rows for item in (row, _MARK)]
        yield _ENCODER.encode(marked[:-1])[1:-1].replace(_MARK_AS_JSON, ",\n    ")


def _flat(locks: list[Any]) -> Iterator[dict[str, Any]]:
    """Return locks of one kind as dicts; values nested in a lock are JSON already."""
    names = [field.name for field in fields(locks[0])]
    are_leases = isinstance(locks[0], FencedLease)
    for values in map(attrgetter(*names), locks):
        row = dict(zip(names, values, strict=True))
        if are_leases:
            row["key"], row["kind"], row["role"] = meaning_of(row["name"], row["slot"])
        yield row
