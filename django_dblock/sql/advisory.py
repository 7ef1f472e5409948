"""The statements of the transaction-scoped locks.

PostgreSQL manual: 9.28.10 "Advisory Lock Functions", 13.3.5 "Advisory Locks". Only the ``xact``
forms: the session forms survive the transaction, so they leak through pools and are released
before COMMIT.

Each first decides whether a lock would mean anything here, in the same round trip. What they
answer instead of taking it:

- ``standby``: the server is in recovery, its locks are unknown to the primary;
- the isolation level, where it is none of ``levels`` (a pattern).

One CASE decides it all, because CASE alone promises an order; the arguments of a function are
evaluated from left to right (tests/test_postgresql_facts.py pins it). Each node of a statement
costs about a tenth of what locking costs, hence: flat, no more than needed, and the shared forms
are statements of their own.

An answer ends in ``locked`` where the lock was free, in ``waited`` where it had to wait, and is
``busy`` where it was not acquired. ``application_name`` is the one to show, label included. ``TRY``
returns that name where the lock was free: it ends in the label's bracket, as no other answer does.
"""

# One lock, without waiting. The label is set only if the lock was taken.
TRY = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN pg_try_advisory_xact_lock(%(id)s)
        THEN set_config('application_name', %(application_name)s, true)
    ELSE 'busy'
END
"""

# The same without a label.
TRY_UNLABELLED = TRY.replace(
    "set_config('application_name', %(application_name)s, true)", "'locked'"
)

# One lock, waiting in the server's queue, first come, first served. The label is set first, so that
# pg_stat_activity shows waiters by name; a failure rolls the label back with the savepoint or the
# transaction.
# Only if the statement has to wait, lock_timeout is set for this wait and then restored: the outer
# set_config() gets the caller's value, read by concat() before its other arguments, which are empty
# texts, set the limit and wait.
WAIT = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN set_config('application_name', %(application_name)s, true) IS NULL THEN NULL
    WHEN pg_try_advisory_xact_lock(%(id)s) THEN 'locked'
    ELSE set_config('lock_timeout', concat(
        current_setting('lock_timeout'),
        left(set_config(
            'lock_timeout', coalesce(%(timeout)s, current_setting('lock_timeout')), true
        ), 0),
        pg_advisory_xact_lock(%(id)s)
    ), true) || ' waited'
END
"""

# Wait for several locks, a row each, in ascending order of their numbers, so that two callers
# can't wait for each other. lock_timeout applies to each lock separately, so before each wait
# it is set to the rest of the common deadline, counted from the arrival of the message; at least 1
# ms, because 0 means no limit. The sort is in a sub-select: otherwise locks could be taken before
# the rows are sorted.
WAIT_ALL = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN set_config('application_name', %(application_name)s, true) IS NULL THEN NULL
    WHEN pg_try_advisory_xact_lock(wanted.id) THEN 'locked'
    ELSE set_config('lock_timeout', concat(
        current_setting('lock_timeout'),
        left(set_config('lock_timeout', coalesce(
            ceil(greatest(1, %(timeout)s::numeric - 1000
                * extract(epoch FROM clock_timestamp() - statement_timestamp())))::text,
            current_setting('lock_timeout')
        ), true), 0),
        pg_advisory_xact_lock(wanted.id)
    ), true) || ' waited'
END
FROM (SELECT DISTINCT id FROM unnest(%(ids)s::bigint[]) AS id ORDER BY id OFFSET 0) AS wanted
"""

# The first lock of several that is free, without waiting; it returns the lock's place. LIMIT 1 ends
# the scan at the first success, so no second lock is taken; rows of unnest() come in their order
# (tests/coordination/test_advisory_semaphore.py pins both).
TRY_ANY = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    ELSE coalesce((
        SELECT concat(
            wanted.place, ' ', left(set_config('application_name',
                %(application_names)s::json ->> (wanted.place - 1)::int, true), 0), 'locked'
        )
        FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS wanted (id, place)
        WHERE pg_try_advisory_xact_lock(wanted.id)
        LIMIT 1
    ), 'busy')
END
"""

# The same statements with PostgreSQL's shared locks.
TRY_SHARED = TRY.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")
TRY_SHARED_UNLABELLED = TRY_UNLABELLED.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")
WAIT_SHARED = WAIT.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")
WAIT_ALL_SHARED = WAIT_ALL.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")

# For a transaction that only holds a lock while something else runs. Older servers lack some of
# these settings.
NO_TIMEOUTS = """
SELECT set_config(name, '0', true)
FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout')
"""

# The holder of the lock of one number, for the waiters' message.
HOLDER = """
SELECT
    activity.pid,
    activity.application_name,
    host(activity.client_addr),
    extract(epoch FROM clock_timestamp() - activity.xact_start)::float8
FROM pg_locks AS locks
JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
    AND locks.classid = %(classid)s AND locks.objid = %(objid)s
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY activity.xact_start
LIMIT 1
"""

# Several locks in two modes: a row each, in ascending order of their numbers. A key with both modes
# is locked exclusively.
WAIT_ALL_MIXED = (
    WAIT_ALL.replace(
        "pg_try_advisory_xact_lock(wanted.id)",
        "CASE WHEN wanted.shared = 1 THEN pg_try_advisory_xact_lock_shared(wanted.id)"
        " ELSE pg_try_advisory_xact_lock(wanted.id) END",
    )
    .replace(
        " pg_advisory_xact_lock(wanted.id)",
        " CASE WHEN wanted.shared = 1 THEN pg_advisory_xact_lock_shared(wanted.id)::text"
        " ELSE pg_advisory_xact_lock(wanted.id)::text END",
    )
    .replace(
        "SELECT DISTINCT id FROM unnest(%(ids)s::bigint[]) AS id ORDER BY id",
        "SELECT id, min(shared) AS shared"
        " FROM unnest(%(ids)s::bigint[], %(modes)s::int[]) AS asked (id, shared)"
        " GROUP BY id ORDER BY id",
    )
)

# A holder of any of the locks, except this session. Sent only after a timeout, because reading
# pg_locks stops all lock traffic of the server for a moment.
HOLDERS = """
SELECT locks.pid::text, activity.application_name
FROM unnest(%(classids)s::bigint[], %(objids)s::bigint[]) AS wanted (classid, objid)
JOIN pg_locks AS locks
    ON locks.classid::bigint = wanted.classid AND locks.objid::bigint = wanted.objid
LEFT JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
    AND locks.pid <> pg_backend_pid()
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY activity.xact_start
LIMIT 1
"""

# Set lock_timeout for the transaction; return the value before.
SET_LOCK_TIMEOUT = """
SELECT before.value
FROM (SELECT current_setting('lock_timeout') AS value OFFSET 0) AS before
WHERE set_config('lock_timeout', %(timeout)s, true) IS NOT NULL
"""

# Whether this session holds the lock exclusively.
IS_HELD = """
SELECT CASE WHEN EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND objsubid = 1
        AND classid = %(classid)s AND objid = %(objid)s AND pid = pg_backend_pid()
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
) THEN 'held' END
"""

# A failed wait must not abort the caller's transaction.
SAVEPOINT = "SAVEPOINT dblock"
RELEASE = "RELEASE SAVEPOINT dblock"
ROLLBACK = "ROLLBACK TO SAVEPOINT dblock"


# The statement that opens a transaction, for a message that begins with it.


# The same text that psycopg sends if the connection sets no isolation level, mode or deferrability.
BEGIN = "BEGIN"
COMMIT = "COMMIT"


# The statement that ends another session's connection.
#
# PostgreSQL manual: 9.28.2 "Server Signaling Functions", 27.2.25 "Statistics Functions", 27.2.2
# "Viewing Statistics" (a transaction keeps the snapshot of its first look).


# End a backend, if it is still the backend that was seen, and still holds or awaits a lock of this
# database. Process ids are reused, so the snapshot that an open transaction keeps of the backends
# is discarded first; that is why the pid is computed from that call. With blocking, also end a
# backend without such a lock that blocks a session of this database. The last column is null if
# nothing was ended because the role may not see when the backend began.
TERMINATE = """
SELECT
    backend.pid,
    pg_get_userbyid(backend.usesysid)::text,
    backend.application_name,
    backend.backend_start,
    CASE
        WHEN %(backend_start)s::timestamptz IS NULL OR backend.backend_start IS NOT NULL
            THEN pg_terminate_backend(backend.pid)
    END
FROM (SELECT length(pg_stat_clear_snapshot()::text) OFFSET 0) AS fresh (zero)
CROSS JOIN LATERAL pg_stat_get_activity(%(pid)s::int + fresh.zero) AS backend
WHERE backend.pid <> pg_backend_pid()
    AND coalesce(backend.backend_start = %(backend_start)s::timestamptz, true)
    AND (
        EXISTS (
            SELECT
            FROM pg_locks AS locks
            WHERE locks.pid = backend.pid
                AND locks.locktype = 'advisory'
                AND locks.database = (
                    SELECT oid FROM pg_database WHERE datname = current_database()
                )
        )
        OR %(blocking)s AND EXISTS (
            SELECT
            FROM pg_locks AS waits
            JOIN pg_stat_activity AS waiting ON waiting.pid = waits.pid
            WHERE NOT waits.granted
                AND waiting.datname = current_database()
                AND backend.pid = ANY (pg_blocking_pids(waits.pid))
        )
    )
"""
