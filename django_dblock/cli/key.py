"""``dblock key``: print the number that PostgreSQL locks for a key, as pg_locks shows it."""

import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.conf import conf
from django_dblock.core.application_name import name, named
from django_dblock.keys import Key, encode, key_id, to_pg_locks

# Key parts as they are written on a command line: text, or ``type:text`` for another type.


KEY_SYNTAX = (
    "a part is text (sku-1), or has its type in front: "
    "int:7, bool:true, bytes:00ff, uuid:…, decimal:9.90, date:2026-01-31, "
    "datetime:2026-01-31T12:00:00+00:00, model:shop.Product:7, "
    "or str:int:7 for text that looks like one of these"
)


def parse_key(texts: list[str], using: str | None) -> tuple[Key, int]:
    """Return the key that these arguments write down, and its number.

    Raises:
        CommandError: a part is not what its type says, or can't be locked.
    """
    key = tuple(_part(text, using) for text in texts)
    try:
        return key, key_id(encode(key), conf.namespace)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error


def _part(text: str, using: str | None) -> Any:
    kind, colon, rest = text.partition(":")
    if not colon or kind not in (*_READERS, "model"):
        return text
    try:
        return _instance(rest, using) if kind == "model" else _READERS[kind](rest)
    except (
        ValueError,
        LookupError,
        InvalidOperation,
        ValidationError,
        ObjectDoesNotExist,
    ) as error:
        raise CommandError(f"{text!r} is not a {kind}: {error!r}. Note: {KEY_SYNTAX}.") from error


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _instance(text: str, using: str | None) -> Any:
    label, _, pk = text.partition(":")
    return apps.get_model(label)._base_manager.using(using).get(pk=pk)  # noqa: SLF001 - as Django does


_WRONG = (ValueError, LookupError, InvalidOperation, ValidationError, ObjectDoesNotExist)
_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "bool": _bool,
    "bytes": bytes.fromhex,
    "uuid": UUID,
    "decimal": Decimal,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
}


def add_arguments(parser: CommandParser) -> None:
    """Add the argument for the key's parts."""
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
