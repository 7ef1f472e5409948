"""The fenced locks in ``dblock list``."""

from typing import Any

from django.core.management.base import CommandError
from django.db import ProgrammingError

from django_dblock.cli import key_parts
from django_dblock.cli.table import printable, seconds, short
from django_dblock.conf import conf
from django_dblock.fencing.names import lease_name
from django_dblock.inspect import FencedLease, fenced_leases
from django_dblock.labels import named

COLUMNS = (
    "fenced lock", "slot", "state", "token", "owner", "age", "free in", "renewed", "grants",
    "delay", "waiting",
)  # fmt: skip

_UNDEFINED_TABLE = "42P01"


def find(options: dict[str, Any]) -> list[FencedLease]:
    """Return those that the filters leave; none where the lock table was never made."""
    name = None
    if options["key"]:
        key, _ = key_parts.parse(options["key"], options["using"])
        name = lease_name(named(key), conf.namespace)
    try:
        leases = fenced_leases(options["using"], name=name, expired=not options["held"])
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", None) != _UNDEFINED_TABLE:
            raise
        if options["kind"] is None:
            return []
        raise CommandError(
            "The lock table is not in this database: run 'manage.py migrate', or pass --using "
            "with the alias of the one where it is."
        ) from error
    return [lease for lease in leases if lease.waiting or not options["blocked"]]


def row(lease: FencedLease) -> tuple[str, ...]:
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
