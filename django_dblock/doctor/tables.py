"""Examine whether our tables are there, and what our role may do."""

from collections.abc import Iterator

from django_dblock.doctor.facts import Facts, Table
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
