"""``dblock key``: print the number that PostgreSQL locks for a key, as pg_locks shows it."""

import json
from typing import Any

from django.core.management.base import CommandParser, OutputWrapper

from django_dblock.cli.key_parts import KEY_SYNTAX, parse_key
from django_dblock.keys import to_pg_locks
from django_dblock.labels import name, named


def add_arguments(parser: CommandParser) -> None:
    """Take the key's parts."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("parts", nargs="+", metavar="PART", help=KEY_SYNTAX)


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Print the key's number whole and in the halves of ``pg_locks``."""
    key, number = parse_key(options["parts"], options["using"])
    classid, objid = to_pg_locks(number)
    found = {
        "name": name(named(key)),
        "key_id": number,
        "classid": classid,
        "objid": objid,
        "objsubid": 1,
    }
    if options["json"]:
        stdout.write(json.dumps(found, indent=2))
        return
    for title, value in found.items():
        stdout.write(f"{title:9}{value}")
    stdout.write(
        f"\nSELECT * FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        f" AND classid = {classid} AND objid = {objid};"
    )
