"""``dblock list``: show what is locked, by whom, who waits for it, and which requests are open."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, NamedTuple

from django.core.management.base import CommandParser, OutputWrapper

from django_dblock.cli import table
from django_dblock.cli.list_advisory import ADVISORY_COLUMNS, advisory_row, find_advisory_locks
from django_dblock.cli.list_fenced import LEASE_COLUMNS, find_leases, lease_row
from django_dblock.cli.list_requests import REQUEST_COLUMNS, find_requests, request_row
from django_dblock.cli.key_parts import KEY_SYNTAX

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
    parser.add_argument(
        "--key", nargs="+", metavar="PART", help=f"only this key; {KEY_SYNTAX}"
    )
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
        table.write_table(stdout, *as_table(kind, found[kind]))
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
