"""Examine whether the package's tables exist, and what the database role may do with them."""

from collections.abc import Iterator

from django_dblock.doctor.facts import Facts, Pin, Table
from django_dblock.doctor.finding import Finding


def migration(facts: Facts) -> Iterator[Finding]:
    """Find tables and columns that are missing because a migration was not run."""
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
            "Leases, latches and idempotent requests fail there; advisory_lock() and versions need "
            "no table.",
            f"Run 'manage.py migrate django_dblock --database {facts.alias}'.",
        )  # fmt: skip
    elif here:
        yield Finding("migration", "ok", "All tables are there, with all columns.")
    if elsewhere:
        where = ", ".join(f"{name} in {alias!r}" for name, alias in elsewhere.items())
        yield Finding(
            "tables-elsewhere", "info",
            f"The settings and routers put these tables into another database: {where}.",
            "The doctor did not examine these tables.",
            "Run 'manage.py dblock doctor --using' with that alias, too.",
        )  # fmt: skip


def _lack(table: Table) -> str:
    if table.exists:
        return f"Table {table.name} has no column {', '.join(table.missing)}."
    if table.elsewhere:
        return (
            f"Table {table.name} is in schema {table.elsewhere!r}, which is not in the "
            f"search_path, or which the role may not use."
        )
    return f"There is no table {table.name}."


def privileges(facts: Facts) -> Iterator[Finding]:
    """Find privileges that the role lacks, and tables whose rows are filtered for the role."""
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
            "Leases, latches or idempotent requests fail with 'permission denied'.",
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
    filtered = [table.name for table in facts.tables if table.filtered]
    if filtered:
        switched_off = "; ".join(
            f"ALTER TABLE {name} DISABLE ROW LEVEL SECURITY" for name in filtered
        )
        yield Finding(
            "row-security", "warning",
            f"Row-level security applies to role {role!r} on {', '.join(filtered)}.",
            "Rows that a policy hides are neither found nor renewed, and rows that a policy "
            "refuses can't be written. Heartbeats and waiters have connections of their own, "
            "without the settings of a request, such as its tenant. The doctor did not read these "
            "tables.",
            f"As the owner of the tables: {switched_off}; DBLOCK_NAMESPACE keeps tenants apart.",
        )  # fmt: skip
    if not lacks and not facts.session.forbidden and not filtered:
        yield Finding("privileges", "ok", f"Role {role!r} may do all that locks need.")


def visibility(facts: Facts) -> Iterator[Finding]:
    """Report what the server hides from the role, so that hidden is not taken for absent."""
    role, grantee = facts.session.role, facts.session.grantee
    if facts.session.sees_all:
        yield Finding(
            "visibility", "ok", f"Role {role!r} sees all details of other roles' sessions."
        )
    else:
        yield Finding(
            "visibility", "info",
            f"The server hides the query, state, client and times of other roles' sessions from "
            f"role {role!r}.",
            "'dblock list' and 'doctor' show these details as hidden. Locks work without them.",
            f"To see the details: GRANT pg_read_all_stats TO {grantee};",
        )  # fmt: skip


# Examine whether dead rows are removed, and which transaction or slot keeps them.
#
# PostgreSQL manual: 25.1.2 "Recovering Disk Space", 27.2 "pg_stat_all_tables".


_MANY = 1000
"""Dead rows; more than usually accumulate between two vacuums."""
_LARGE = 128
"""Pages; a megabyte."""
_HOUR = 3600
_LONG_AGO = 1_000_000
"""The age in transactions from which a pin is old, if its age in seconds is hidden or unknown."""


def table_bloat(facts: Facts) -> Iterator[Finding]:
    """Find the package's tables that are mostly dead rows, and what keeps those rows."""
    bloated = [table for table in facts.tables if _is_bloated(table)]
    if not bloated:
        yield Finding("table-bloat", "ok", "The package's tables have few dead rows.")
        return
    follows = "Every statement on these tables reads the dead rows, too, and gets slower."
    off = facts.settings["autovacuum"] == "off"
    do = f"VACUUM {', '.join(table.name for table in bloated)};"
    # A transaction that began a moment ago can't have kept so many rows: don't advise to end it.
    pin = next((pin for pin in facts.pins if pin.xids >= _MANY or _is_old(pin)), None)
    if pin:
        then = do if off else "autovacuum removes the rows; VACUUM does so at once."
        do = f"End what keeps the dead rows, if it is not needed: {_end(pin)} Then {then}"
        follows = (
            f"{follows} The dead rows are kept by {_shown(pin)}, the oldest that may still see "
            f"them."
        )
    if off:
        do = f"{do} Also switch autovacuum on: it is off on this server."
    yield Finding("table-bloat", "warning", " ".join(map(_size, bloated)), follows, do)


def _is_bloated(table: Table) -> bool:
    """Return whether a table has more dead rows than live ones, or more pages than live rows."""
    # A page has room for two of the package's rows at least.
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
    """Find what keeps dead rows for long, also if the package's tables are not bloated yet."""
    old = [pin for pin in facts.pins if _is_old(pin)]
    if old:
        yield Finding(
            "oldest-transaction", "warning",
            f"Dead rows are kept by {'; by '.join(map(_shown, old))}.",
            "No row that has died since can be removed, in any table of the database: tables "
            "that are often written, above all the leases' table, grow and get slow.",
            f"If it is not needed: {_end(old[0])}",
        )  # fmt: skip
    else:
        yield Finding(
            "oldest-transaction", "ok", "No transaction or slot keeps dead rows for long."
        )


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
