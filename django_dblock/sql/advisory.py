"""The statements of the transaction-scoped locks.

PostgreSQL manual: 9.28.10 "Advisory Lock Functions", 13.3.5 "Advisory Locks". Only the ``xact``
forms: the session forms survive the transaction, so they leak through pools and are released
before COMMIT.

Each first decides whether a lock would mean anything here, in the same round trip. What they
answer instead of taking it:

- ``standby``: the server is in recovery, its locks are unknown to the primary;
- ``cockroach``: the functions exist there and lock nothing;
- the isolation level, where it is none of ``levels`` (a pattern).

One CASE decides it all, because CASE alone promises an order; the arguments of a function are
evaluated from left to right (tests/test_postgresql_facts.py pins it). Each node of a statement
costs about a tenth of what locking costs, hence: flat, no more than needed, and the shared forms
are statements of their own.

An answer ends in ``locked`` where the lock was free, in ``waited`` where it had to wait, and is
``busy`` where it was not acquired. ``application_name`` is the one to show, label included.
"""

# One lock, without waiting. The label is set only where the lock was taken.
TRY = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN pg_try_advisory_xact_lock(%(id)s)
        THEN concat(set_config('application_name', %(application_name)s, true), ' locked')
    ELSE 'busy'
END
"""

# One lock, waiting in the server's queue, first come, first served. The label is set first, so that
# waiters are seen by name; a failure takes it back with the savepoint or the transaction.
# Only where it has to wait, lock_timeout is set for this wait, and put back; dblock.lock_timeout
# keeps the caller's value meanwhile, because only the server knows it.
WAIT = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN set_config('application_name', %(application_name)s, true) IS NULL THEN NULL
    WHEN pg_try_advisory_xact_lock(%(id)s) THEN 'locked'
    ELSE concat(
        set_config('dblock.lock_timeout', current_setting('lock_timeout'), true),
        set_config('lock_timeout', coalesce(%(timeout)s, current_setting('lock_timeout')), true),
        pg_advisory_xact_lock(%(id)s),
        set_config('lock_timeout', current_setting('dblock.lock_timeout'), true),
        ' waited'
    )
END
"""

# The same for several locks, a row each, in ascending order of their numbers, so that two callers
# can't wait for each other. lock_timeout counts again for each lock, so before each wait it is set
# to what is left of the one deadline, counted from the arrival of the message; 1 ms at least, since
# 0 would be no limit. The sort stands in a sub-select: beside it, locks could be taken before the
# rows are sorted.
WAIT_ALL = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN set_config('application_name', %(application_name)s, true) IS NULL THEN NULL
    WHEN pg_try_advisory_xact_lock(wanted.id) THEN 'locked'
    ELSE concat(
        set_config('dblock.lock_timeout', current_setting('lock_timeout'), true),
        set_config('lock_timeout', coalesce(
            ceil(greatest(1, %(timeout)s::numeric - 1000
                * extract(epoch FROM clock_timestamp() - statement_timestamp())))::text,
            current_setting('lock_timeout')
        ), true),
        pg_advisory_xact_lock(wanted.id),
        set_config('lock_timeout', current_setting('dblock.lock_timeout'), true),
        ' waited'
    )
END
FROM (SELECT DISTINCT id FROM unnest(%(ids)s::bigint[]) AS id ORDER BY id OFFSET 0) AS wanted
"""

# The first lock of several that is free, without waiting; it returns the lock's place. LIMIT 1 ends
# the scan at the first success, so no second lock is taken; rows of unnest() come in their order
# (tests/coordination/test_advisory_semaphore.py pins both).
TRY_ANY = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
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

# The same, word for word, of PostgreSQL's shared locks.
TRY_SHARED = TRY.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")
WAIT_SHARED = WAIT.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")
WAIT_ALL_SHARED = WAIT_ALL.replace("advisory_xact_lock(", "advisory_xact_lock_shared(")

# For a transaction that does nothing but hold a lock, for as long as something else takes. Not each
# version of the server has each of these.
NO_TIMEOUTS = """
SELECT set_config(name, '0', true)
FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout')
"""

# Who holds a lock on one number, for the waiters' message.
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

# Several locks in two modes: a row each, in ascending order of their numbers. A key that is wanted
# in both modes is locked exclusively.
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

# Who holds any of the locks at this moment, this session excepted. Asked after a timeout only:
# reading pg_locks stops all lock traffic of the server for a moment.
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

# A failed wait must not take the caller's transaction with it.
SAVEPOINT = "SAVEPOINT dblock"
RELEASE = "RELEASE SAVEPOINT dblock"
ROLLBACK = "ROLLBACK TO SAVEPOINT dblock"


# The statement that opens a transaction, for a message that begins with it.


# As psycopg sends it for a connection without an isolation level, mode or deferrability of its own.
BEGIN = "BEGIN"
COMMIT = "COMMIT"


# The statement that ends somebody's connection.
#
# PostgreSQL manual: 9.28.2 "Server Signaling Functions", 27.2.25 "Statistics Functions", 27.2.2
# "Viewing Statistics" (a transaction keeps the picture that it looked at first).


# End a backend, if it is still the one that was seen, and still has to do with a lock of this
# database. Numbers of processes are used again, so the picture that an open transaction keeps of
# the backends is thrown away first, which is why the number is made to depend on that.
# With blocking also one that has no such lock, but blocks somebody who is connected here.
# The last column is null where nothing was ended: who asks may not see when the backend began.
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
