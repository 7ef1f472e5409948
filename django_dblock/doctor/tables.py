"""Examine whether our tables are there, and what our role may do."""

from collections.abc import Iterator

from django_dblock.doctor.facts import Facts, Pin, Table
from django_dblock.doctor.finding import Finding


def migration(facts: Facts) -> Iterator[Finding]:
    """Find tables and columns that a migration would have made."""
    elsewhere = {
        table.name: facts.elsewhere[table.name]
        for table in facts.tables
        if table.name in facts.elsewhere and not table.exists
    }
    here = [table for table in facts.tables if table.name not in elsewhere]
    wrong = [table for table in here if not table.exists or table.missing]
    if wrong:
        yield Finding(
            "migration", "error",
            " ".join(map(_lack, wrong)),
            "fenced_lock() and idempotent requests fail there; advisory_lock() and versions need "
            "no table.",
            f"Run 'manage.py migrate django_dblock --database {facts.alias}'.",
        )  # fmt: skip
    elif here:
        yield Finding("migration", "ok", "All tables are there, with all columns.")
    if elsewhere:
        where = ", ".join(f"{name} in {alias!r}" for name, alias in elsewhere.items())
        yield Finding(
            "tables-elsewhere", "info",
            f"These tables are in another database, by the settings and routers: {where}.",
            "They were not looked at.",
            "Call 'manage.py dblock doctor --using' with that alias, too.",
        )  # fmt: skip


def _lack(table: Table) -> str:
    if table.exists:
        return f"Table {table.name} has no column {', '.join(table.missing)}."
    if table.elsewhere:
        return (
            f"Table {table.name} is in schema {table.elsewhere!r}, which is not in the "
            f"search_path, or closed to our role."
        )
    return f"There is no table {table.name}."


def privileges(facts: Facts) -> Iterator[Finding]:
    """Find what our role may not do."""
    role, grantee = facts.session.role, facts.session.grantee
    lacks = [f"{table.name}: {', '.join(table.denied)}" for table in facts.tables if table.denied]
    if lacks:
        grants = "; ".join(
            f"GRANT {', '.join(table.denied)} ON {table.name} TO {grantee}"
            for table in facts.tables
            if table.denied
        )
        yield Finding(
            "privileges", "error",
            f"Role {role!r} lacks privileges on {'; '.join(lacks)}.",
            "fenced_lock() or idempotent requests fail with 'permission denied'.",
            f"As the owner of the tables: {grants};",
        )  # fmt: skip
    if facts.session.forbidden:
        functions = ", ".join(facts.session.forbidden)
        yield Finding(
            "lock-functions", "error",
            f"Role {role!r} may not call {functions}.",
            "advisory_lock() and idempotent requests fail with 'permission denied'.",
            f"As a superuser: GRANT EXECUTE ON FUNCTION {functions} TO {grantee};",
        )  # fmt: skip
    if not lacks and not facts.session.forbidden:
        yield Finding("privileges", "ok", f"Role {role!r} may do all that locks need.")


def visibility(facts: Facts) -> Iterator[Finding]:
    """Say what the server hides from our role, lest it be taken for absent."""
    role, grantee = facts.session.role, facts.session.grantee
    if facts.session.sees_all:
        yield Finding("visibility", "ok", f"Role {role!r} is shown other roles' sessions whole.")
    else:
        yield Finding(
            "visibility", "info",
            f"From role {role!r} the server hides the query, state, client and times of other "
            f"roles' sessions.",
            "'dblock list' and 'doctor' show them as hidden. Locks need none of it.",
            f"To see them: GRANT pg_read_all_stats TO {grantee};",
        )  # fmt: skip


# Examine whether dead rows are removed, and who keeps them.
#
# PostgreSQL manual: 25.1.2 "Recovering Disk Space", 27.2 "pg_stat_all_tables".


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
