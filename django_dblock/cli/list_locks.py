"""``dblock list``: show what is locked, by whom, who waits for it, and which requests are open."""

import json
from dataclasses import asdict
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from django.core.management.base import CommandParser, OutputWrapper

from django_dblock.cli import key_parts, list_advisory, list_fenced, list_requests, table

SCHEMA = 1
"""Raised when a field of the JSON changes its meaning or goes; new fields may come without."""

_KINDS: dict[str, Any] = {
    "advisory": list_advisory,
    "fenced": list_fenced,
    "idempotency": list_requests,
}


def add_arguments(parser: CommandParser) -> None:
    """Take the filters."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--kind", choices=_KINDS, help="only this kind")
    parser.add_argument(
        "--key", nargs="+", metavar="PART", help=f"only this key; {key_parts.SYNTAX}"
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
    kinds = [kind for kind in _KINDS if options["kind"] in (None, kind)]
    found = {kind: _KINDS[kind].find(options) for kind in kinds}
    if options["name"]:
        for kind in kinds:
            found[kind] = [
                lock for lock in found[kind] if fnmatchcase(lock.name or "", options["name"])
            ]
    if options["json"]:
        rows = {kind: [asdict(lock) for lock in found[kind]] for kind in kinds}
        stdout.write(json.dumps({"schema": SCHEMA, **rows}, indent=2, default=datetime.isoformat))
        return
    shown = [kind for kind in kinds if found[kind]]
    for kind in shown:
        if kind != shown[0]:
            stdout.write("")
        table.write(stdout, _KINDS[kind].COLUMNS, list(map(_KINDS[kind].row, found[kind])))
    if not shown:
        stdout.write("Nothing is locked.")
