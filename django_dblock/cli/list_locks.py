"""``dblock list``: show what is locked, by whom, and who waits for it."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser, OutputWrapper

from django_dblock.cli import key_parts, table
from django_dblock.inspect import AdvisoryLock, advisory_locks

SCHEMA = 1
"""Raised when a field of the JSON changes its meaning or goes; new fields may come without."""

_COLUMNS = ("lock", "mode", "state", "pid", "for", "transaction", "user", "client", "query")


def add_arguments(parser: CommandParser) -> None:
    """Take the filters."""
    parser.add_argument(
        "--key", nargs="+", metavar="PART", help=f"only this key; {key_parts.SYNTAX}"
    )
    parser.add_argument(
        "--blocked", action="store_true", help="only locks that somebody waits for, and who waits"
    )


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Print the advisory locks of the database as a table, or as JSON."""
    locks = advisory_locks(options["using"])
    if options["key"]:
        _, wanted = key_parts.parse(options["key"], options["using"])
        locks = [lock for lock in locks if lock.key_id == wanted]
    if options["blocked"]:
        waited_for = {_place(lock) for lock in locks if not lock.granted}
        locks = [lock for lock in locks if _place(lock) in waited_for]
    if options["json"]:
        rows = [asdict(lock) for lock in locks]
        stdout.write(json.dumps({"schema": SCHEMA, "advisory": rows}, indent=2))
    elif locks:
        table.write(stdout, _COLUMNS, [_row(lock) for lock in locks])
    else:
        stdout.write("Nothing is locked.")


def _place(lock: AdvisoryLock) -> tuple[int, int, bool]:
    return lock.classid, lock.objid, lock.key_id is None


def _row(lock: AdvisoryLock) -> tuple[str, ...]:
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
        _seconds(lock.waiting),
        "hidden" if lock.hidden else _seconds(lock.transaction_age),
        _printable(lock.user or ""),
        "hidden" if lock.hidden else lock.client or ("" if lock.pid is None else "local"),
        "hidden" if lock.hidden else _printable(" ".join((lock.query or "").split())[:60]),
    )


def _printable(text: str) -> str:
    """Keep what somebody else's statement holds from speaking to the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
