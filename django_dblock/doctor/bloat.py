"""Examine whether dead rows are removed, and who keeps them.

PostgreSQL manual: 25.1.2 "Recovering Disk Space", 27.2 "pg_stat_all_tables".
"""

from collections.abc import Iterator

from django_dblock.doctor.facts import Facts, Pin, Table
from django_dblock.doctor.finding import Finding

_MANY = 1000
"""Dead rows that are no ordinary moment between two vacuums."""
_LARGE = 128
"""Pages; a megabyte."""
_HOUR = 3600
_LONG_AGO = 1_000_000
"""Transactions begun since; for those whose time is hidden or unknown."""


def table_bloat(facts: Facts) -> Iterator[Finding]:
    """Find tables of ours that are mostly dead rows, and say who keeps them."""
    bloated = [table for table in facts.tables if _is_bloated(table)]
    if not bloated:
        yield Finding("table-bloat", "ok", "Our tables have few dead rows.")
        return
    follows = "Every statement on these tables reads past them, and takes longer and longer."
    off = facts.settings["autovacuum"] == "off"
    do = f"VACUUM {', '.join(table.name for table in bloated)};"
    # So many rows did not die since somebody came a moment ago: nobody is to end an innocent one.
    pin = next((each for each in facts.pins if each.xids >= _MANY or _is_old(each)), None)
    if pin:
        then = do if off else "autovacuum removes them; VACUUM does so at once."
        do = f"End what keeps them, if it is not needed: {_end(pin)} Then {then}"
        follows = f"{follows} Kept by {_shown(pin)}, the oldest that may still see them."
    if off:
        do = f"{do} And switch autovacuum on: it is off on this server."
    yield Finding("table-bloat", "warning", " ".join(map(_size, bloated)), follows, do)


def _is_bloated(table: Table) -> bool:
    """Mostly dead; or fewer rows than pages, where a page has room for two of ours at least."""
    return (table.dead >= _MANY and table.dead > table.live) or (
        table.pages > max(_LARGE, table.live)
    )


def _size(table: Table) -> str:
    when = "never" if table.vacuumed is None else f"{table.vacuumed:.0f} s ago"
    return (
        f"{table.name} has {table.dead:,} dead rows and {table.live:,} live ones on "
        f"{table.pages:,} pages; vacuumed {when}."
    )


def oldest_transaction(facts: Facts) -> Iterator[Finding]:
    """Find who keeps dead rows for long, also where ours do not suffer from it yet."""
    old = [pin for pin in facts.pins if _is_old(pin)]
    if old:
        yield Finding(
            "oldest-transaction", "warning",
            f"Dead rows are kept by {'; by '.join(map(_shown, old))}.",
            "No row that has died since can be removed, in any table of the database: tables "
            "that are often written, leases' above all, grow and get slow.",
            f"If it is not needed: {_end(old[0])}",
        )  # fmt: skip
    else:
        yield Finding("oldest-transaction", "ok", "Nobody keeps dead rows for long.")


def _is_old(pin: Pin) -> bool:
    return pin.xids >= _LONG_AGO if pin.seconds is None else pin.seconds >= _HOUR


def _shown(pin: Pin) -> str:
    kinds = {
        "backend": "the transaction of backend",
        "prepared": "the prepared transaction",
        "slot": "the replication slot",
    }
    since = "for a time that is hidden" if pin.kind == "backend" else "for an unknown time"
    if pin.seconds is not None:
        since = f"for {pin.seconds:.0f} s"
    return (
        f"{kinds[pin.kind]} {pin.name} ({pin.detail}), {since}, in which {pin.xids:,} other "
        f"transactions began"
    )


def _end(pin: Pin) -> str:
    if pin.kind == "backend":
        return f"SELECT pg_terminate_backend({pin.name});"
    quoted = "'" + pin.name.replace("'", "''") + "'"
    if pin.kind == "prepared":
        return f"ROLLBACK PREPARED {quoted}; or COMMIT PREPARED."
    return f"SELECT pg_drop_replication_slot({quoted}); or bring its standby back."
