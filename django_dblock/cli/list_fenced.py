"""The fenced locks in ``dblock list``."""

from typing import Any

from django_dblock.cli.missing import tolerate_missing_table
from django_dblock.cli.key_parts import parse_key
from django_dblock.cli.table import printable, seconds, short
from django_dblock.conf import conf
from django_dblock.fencing.names import lease_name
from django_dblock.inspect import FencedLease, fenced_leases
from django_dblock.labels import named

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
