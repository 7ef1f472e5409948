"""Examine what kind of server it is, and how it runs transactions."""

from collections.abc import Iterator

from django_dblock.conf import conf
from django_dblock.doctor.facts import Facts
from django_dblock.doctor.finding import Finding

_OLDEST = 150_000
_HARMLESS = 5
"""Seconds by which two clocks may differ without a finding."""


def engine(alias: str, version: str) -> Iterator[Finding]:
    """Report servers that have PostgreSQL's functions but not its locks."""
    if "Cockroach" in version:
        yield foreign(alias, "CockroachDB", version)


def foreign(alias: str, name: str, version: str) -> Finding:
    """Say that this is no PostgreSQL."""
    return Finding(
        "engine",
        "error",
        f"Database {alias!r} is {name}, not PostgreSQL: {version}",
        "Its advisory locks are missing or do nothing, so every lock refuses to work there.",
        "Pass --using, or set DBLOCK_DATABASE to the alias of a PostgreSQL database.",
    )


def server_version(facts: Facts) -> Iterator[Finding]:
    """Report the version; warn of an untested one."""
    shown = f"PostgreSQL {facts.settings['server_version']}, database {facts.session.database!r}."
    if facts.number("server_version_num") >= _OLDEST:
        yield Finding("server-version", "ok", shown)
    else:
        yield Finding(
            "server-version", "warning", shown,
            "The package is tested on PostgreSQL 15 and newer; what it does there is not known.",
            "Upgrade the server.",
        )  # fmt: skip


def standby(facts: Facts) -> Iterator[Finding]:
    """Find an alias that leads to a standby."""
    if facts.session.in_recovery:
        yield Finding(
            "standby", "error",
            f"Database {facts.alias!r} is a standby (in recovery).",
            "Locks there are refused with StandbyDatabase: the primary would never see them.",
            "Set DBLOCK_DATABASE, or pass using=, with the alias of the primary; behind a proxy or "
            "a list of hosts, add target_session_attrs=read-write to the alias's OPTIONS.",
        )  # fmt: skip
    else:
        yield Finding("standby", "ok", "This is a primary.")


def isolation(facts: Facts) -> Iterator[Finding]:
    """Find transactions whose snapshot can be older than a lock."""
    if facts.isolation is None:
        return  # no transaction at all: the pooler's finding says so
    shown = f"Transactions run at {facts.isolation.upper()}."
    if facts.isolation.startswith("read "):
        yield Finding("isolation", "ok", shown)
    elif conf.allow_snapshot_isolation:
        yield Finding(
            "isolation", "info", shown,
            "What is read under a lock can be older than the lock. "
            "DBLOCK_ALLOW_SNAPSHOT_ISOLATION says that this is meant.",
            "Let each lock be its transaction's first statement, and retry serialization failures.",
        )  # fmt: skip
    else:
        yield Finding(
            "isolation", "error", shown,
            "advisory_lock() refuses with UnsafeIsolation: what is read under the lock can be "
            "older than the lock.",
            "Use READ COMMITTED: take isolation_level out of the alias's OPTIONS, or the "
            "default_transaction_isolation off the role or the database; or set "
            "DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True, if every lock is its transaction's first "
            "statement and serialization failures are retried.",
        )  # fmt: skip


def synchronous_commit(facts: Facts) -> Iterator[Finding]:
    """Find commits that are answered before they are on disk."""
    setting = facts.settings["synchronous_commit"]
    if setting == "off":
        yield Finding(
            "synchronous-commit", "warning",
            "synchronous_commit is off.",
            "After a crash of the server the last commits are missing, though they were answered: "
            "an idempotent request and its effects go together, and a repeat has them again; "
            "leases are safe, because they commit with 'on' by themselves.",
            "If that is not meant: take the setting off the role, the database or the server.",
        )  # fmt: skip
    else:
        yield Finding("synchronous-commit", "ok", f"synchronous_commit is {setting}.")


def clock(facts: Facts) -> Iterator[Finding]:
    """Compare the clocks; a wrong one of ours is harmless, and said to be."""
    ahead = facts.session.clock_ahead
    if abs(ahead) < _HARMLESS:
        yield Finding("clock", "ok", "This machine's clock and the server's agree.")
        return
    amount = f"{abs(ahead):.0f} s" if abs(ahead) < 120 else f"{abs(ahead) / 60:.1f} minutes"  # noqa: PLR2004
    yield Finding(
        "clock", "info",
        f"This machine's clock is {amount} {'behind' if ahead > 0 else 'ahead of'} the server's.",
        "Harmless for locks: all that expires does so by the server's clock, and a holder counts "
        "seconds, not the time of day.",
        "Nothing, for locks. If it is the server's that is wrong, let NTP slew it; don't set it.",
    )  # fmt: skip


# Examine what stands between us and the server.
#
# PgBouncer's manual: "pool_mode". A pooler tells its clients a process number of its own for the
# cancelling of queries, so the driver's differs from what ``pg_backend_pid()`` says.


def pooler_mode(facts: Facts) -> Iterator[Finding]:
    """Find a pooler, and for how long it lends a server connection."""
    if facts.isolation is None:
        yield Finding(
            "pooler-mode", "error",
            f"A pooler refuses transactions: {facts.refused}.",
            "Nothing works: a lock, a guard and an idempotent request are transactions.",
            "Set pool_mode = transaction (or session) in PgBouncer, for this database and user.",
        )  # fmt: skip
    elif not facts.session.pooled:
        yield Finding("pooler-mode", "ok", "No pooler in front of the server.")
    elif facts.shared:
        yield Finding("pooler-mode", "ok", "A pooler lends connections for a transaction each.")
    elif facts.shared is None:
        yield Finding(
            "pooler-mode", "info",
            "There is a pooler, and whether it lends connections for a transaction or for a "
            "session can't be told: it had none for a second client, or a transaction was open.",
            "Locks work in both modes. A pool that is used up makes everybody wait.",
            "Look at SHOW POOLS in the pooler's console: cl_waiting should be 0.",
        )  # fmt: skip
    else:
        yield Finding(
            "pooler-mode", "ok",
            "A pooler lends connections for a session each, as far as three looks can tell.",
        )  # fmt: skip


def pooler_cursors(facts: Facts) -> Iterator[Finding]:
    """Find server-side cursors, which need a session, where there is none."""
    if facts.shared and facts.server_side_cursors:
        yield Finding(
            "pooler-cursors", "warning",
            f"Database {facts.alias!r} uses server-side cursors through a pooler that lends "
            f"connections for a transaction.",
            "QuerySet.iterator() outside a transaction fails, or reads somebody else's cursor.",
            "Set DISABLE_SERVER_SIDE_CURSORS to True in the alias's settings.",
        )  # fmt: skip


# Examine the lock table of the server.
#
# PostgreSQL manual: 20.12 "Lock Management".


_TIGHT, _FULL = 0.5, 0.9
_FOLLOWS = (
    "When it is full, nobody on the server gets a lock, tables' included: LockTableFull here, "
    "'out of shared memory' elsewhere."
)
_DO = (
    "Lock fewer keys in one transaction; or raise max_locks_per_transaction (needs a restart, on "
    "standbys first)."
)


def lock_table(facts: Facts) -> Iterator[Finding]:
    """Compare the locks in the lock table with the room that the settings give it."""
    table = facts.lock_table
    room = facts.number("max_locks_per_transaction") * (
        facts.number("max_connections") + facts.number("max_prepared_transactions")
    )
    share = table.used / room
    shown = f"{table.used:,} of about {room:,} places for locks are taken ({share:.0%})."
    if share < _TIGHT:
        yield Finding("lock-table", "ok", shown)
        return
    who = (
        "a prepared transaction"
        if table.pid is None
        else f"backend {table.pid} (role {table.role}, {table.application_name!r})"
    )
    yield Finding(
        "lock-table",
        "error" if share >= _FULL else "warning",
        f"{shown} Most locks, {table.most:,}, are those of {who}.",
        _FOLLOWS,
        _DO,
    )


def lock_table_full(said: str) -> Finding:
    """Say that there was no room left for the questions themselves."""
    return Finding("lock-table", "error", f"No place for a lock is left: {said}", _FOLLOWS, _DO)
