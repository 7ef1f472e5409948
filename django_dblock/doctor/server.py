"""Examine what kind of server the alias leads to, and how that server runs transactions."""

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
    """Return the finding that the database is not PostgreSQL."""
    return Finding(
        "engine",
        "error",
        f"Database {alias!r} is {name}, not PostgreSQL: {version}",
        "Its advisory locks are missing or are not PostgreSQL's, so every lock is refused there.",
        "Pass --using, or set DBLOCK_DATABASE to the alias of a PostgreSQL database.",
    )


def server_version(facts: Facts) -> Iterator[Finding]:
    """Report the server's version; warn if the package is not tested on that version."""
    shown = f"PostgreSQL {facts.settings['server_version']}, database {facts.session.database!r}."
    if facts.number("server_version_num") >= _OLDEST:
        yield Finding("server-version", "ok", shown)
    else:
        yield Finding(
            "server-version", "warning", shown,
            "The package is tested on PostgreSQL 15 and newer; it may misbehave on this version.",
            "Upgrade the server.",
        )  # fmt: skip


def standby(facts: Facts) -> Iterator[Finding]:
    """Find an alias that leads to a standby."""
    if facts.session.in_recovery:
        yield Finding(
            "standby", "error",
            f"Database {facts.alias!r} is a standby (in recovery).",
            "Locks on a standby are refused with StandbyDatabase: the primary would never see "
            "such locks.",
            "Set DBLOCK_DATABASE, or pass using=, with the alias of the primary; behind a proxy or "
            "a list of hosts, add target_session_attrs=read-write to the alias's OPTIONS.",
        )  # fmt: skip
    else:
        yield Finding("standby", "ok", "This is a primary.")


def read_only(facts: Facts) -> Iterator[Finding]:
    """Find transactions that may not write, although the server is a primary."""
    if facts.settings["default_transaction_read_only"] == "on" and not facts.session.in_recovery:
        yield Finding(
            "read-only", "error",
            "default_transaction_read_only is on.",
            "Leases, latches and idempotent requests fail: they write rows. Some hosts set it when "
            "the disk is nearly full.",
            "If the disk is full, make room. Then take the setting off the role, the database, the "
            "server, or the alias's OPTIONS.",
        )  # fmt: skip


def isolation(facts: Facts) -> Iterator[Finding]:
    """Find transactions whose snapshot can be older than a lock."""
    if facts.isolation is None:
        return  # no transaction could be begun: pooler_mode() reports that
    shown = f"Transactions run at {facts.isolation.upper()}."
    if facts.isolation.startswith("read "):
        yield Finding("isolation", "ok", shown)
    elif conf.allow_snapshot_isolation:
        yield Finding(
            "isolation", "info", shown,
            "What is read under a lock can be older than the lock. "
            "DBLOCK_ALLOW_SNAPSHOT_ISOLATION allows this.",
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
    """Find commits that the server confirms before they are on disk."""
    setting = facts.settings["synchronous_commit"]
    if setting == "off":
        yield Finding(
            "synchronous-commit", "warning",
            "synchronous_commit is off.",
            "After a crash of the server the last commits can be missing, although they were "
            "confirmed. An idempotent request and its effects are lost together, and a retry runs "
            "the request again. Leases are safe: grants are committed with synchronous_commit on.",
            "If you do not want this: take the setting off the role, the database or the server.",
        )  # fmt: skip
    else:
        yield Finding("synchronous-commit", "ok", f"synchronous_commit is {setting}.")


def clock(facts: Facts) -> Iterator[Finding]:
    """Compare this machine's clock with the server's; a difference is harmless for locks."""
    ahead = facts.session.clock_ahead
    if abs(ahead) < _HARMLESS:
        yield Finding("clock", "ok", "This machine's clock and the server's agree.")
        return
    amount = f"{abs(ahead):.0f} s" if abs(ahead) < 120 else f"{abs(ahead) / 60:.1f} minutes"  # noqa: PLR2004
    yield Finding(
        "clock", "info",
        f"This machine's clock is {amount} {'behind' if ahead > 0 else 'ahead of'} the server's.",
        "Harmless for locks: everything expires by the server's clock, and a holder counts "
        "seconds, not the time of day.",
        "Nothing, for locks. If the server's clock is wrong, let NTP slew it; don't set it.",
    )  # fmt: skip


# Examine a pooler between the client and the server.
#
# PgBouncer's manual: "pool_mode". For cancelling queries a pooler gives its clients a process
# number of its own, so the driver's number differs from ``pg_backend_pid()``.


def pooler_mode(facts: Facts) -> Iterator[Finding]:
    """Find a pooler, and whether it lends a server connection for a transaction or a session."""
    if facts.isolation is None:
        yield Finding(
            "pooler-mode", "error",
            f"A pooler refuses transactions: {facts.refused}.",
            "Nothing works: locks, guards and idempotent requests need transactions.",
            "Set pool_mode = transaction (or session) in PgBouncer, for this database and user.",
        )  # fmt: skip
    elif not facts.session.pooled:
        yield Finding("pooler-mode", "ok", "No pooler in front of the server.")
    elif facts.shared:
        yield Finding("pooler-mode", "ok", "A pooler lends a connection for one transaction.")
    elif facts.shared is None:
        yield Finding(
            "pooler-mode", "info",
            "There is a pooler, but the doctor could not see whether it lends a connection for a "
            "transaction or for a session: it had no connection for a second client, or a "
            "transaction was open.",
            "Locks work in both modes. A pool without a free connection makes all clients wait.",
            "Look at SHOW POOLS in the pooler's console: cl_waiting should be 0.",
        )  # fmt: skip
    else:
        yield Finding(
            "pooler-mode", "ok",
            "A pooler lends a connection for a session, as far as three samples show.",
        )  # fmt: skip


def pooler_cursors(facts: Facts) -> Iterator[Finding]:
    """Find server-side cursors, which need a session, behind a pooler that lends transactions."""
    if facts.shared and facts.server_side_cursors:
        yield Finding(
            "pooler-cursors", "warning",
            f"Database {facts.alias!r} uses server-side cursors through a pooler that lends "
            f"connections for a transaction.",
            "QuerySet.iterator() outside a transaction fails, or reads another client's cursor.",
            "Set DISABLE_SERVER_SIDE_CURSORS to True in the alias's settings.",
        )  # fmt: skip


# Examine the server's lock table.
#
# PostgreSQL manual: 20.12 "Lock Management".


_TIGHT, _FULL = 0.5, 0.9
_FOLLOWS = (
    "When the lock table is full, no session on the server gets a lock, not even a table lock: "
    "this package raises LockTableFull, other code sees 'out of shared memory'."
)
_DO = (
    "Lock fewer keys in one transaction; or raise max_locks_per_transaction (needs a restart, on "
    "standbys first)."
)


def lock_table(facts: Facts) -> Iterator[Finding]:
    """Compare the number of entries in the lock table with the room that the settings give it."""
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
        "A prepared transaction"
        if table.pid is None
        else f"Backend {table.pid} (role {table.role}, {table.application_name!r})"
    )
    yield Finding(
        "lock-table",
        "error" if share >= _FULL else "warning",
        f"{shown} {who} holds the most locks, {table.most:,}.",
        _FOLLOWS,
        _DO,
    )


def lock_table_full(said: str) -> Finding:
    """Return the finding that the lock table had no room left for the doctor's own statements."""
    return Finding("lock-table", "error", f"No place for a lock is left: {said}", _FOLLOWS, _DO)
