"""The statements that show what is locked.

PostgreSQL manual: 53.13 "pg_locks", 27.2.3 "pg_stat_activity", 9.27 "pg_blocking_pids()".
"""

# All advisory locks of this database, held and awaited, with their backends.
# The columns are in the order of AdvisoryLock's fields, because there may be ten thousand rows. The
# lock's name is made from the application_name, and the blockers of a waiter from the other rows. A
# prepared transaction's locks have no pid. If the latest statement of a backend is one of
# sql.advisory, its text is replaced by the number that it locked, or by 'several': the text adds
# nothing to the lock, and a thousand locks would repeat it a thousand times. The last columns:
# whether the backend waits for another lock (a row's, a table's), and whether the server is a
# standby. Without locks, one row without a lock says the latter.
ADVISORY_LOCKS = """
WITH every AS MATERIALIZED (
    SELECT pid, locktype, database, classid, objid, objsubid, mode, granted, waitstart
    FROM pg_locks
)
SELECT
    CASE locks.objsubid WHEN 1 THEN locks.classid::bigint << 32 | locks.objid::bigint END,
    locks.classid::bigint,
    locks.objid::bigint,
    locks.mode = 'ShareLock',
    locks.granted,
    locks.pid,
    extract(epoch FROM clock_timestamp() - locks.waitstart)::float8,
    extract(epoch FROM clock_timestamp() - activity.xact_start)::float8,
    activity.application_name,
    activity.usename,
    activity.client,
    activity.state,
    CASE WHEN activity.locked IS NULL THEN activity.query END,
    coalesce(activity.hidden, false),
    activity.backend_start,
    activity.locked,
    elsewhere.pid IS NOT NULL,
    server.standby
FROM (SELECT pg_is_in_recovery() AS standby OFFSET 0) AS server
LEFT JOIN every AS locks ON locks.locktype = 'advisory'
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
LEFT JOIN (
    SELECT
        pid,
        xact_start,
        application_name,
        usename::text,
        host(client_addr) AS client,
        state,
        query,
        coalesce(query = '<insufficient privilege>', false) AS hidden,
        backend_start,
        CASE
            WHEN strpos(query, 'pg_is_in_recovery() THEN ''standby''') > 0
                THEN coalesce(
                    substring(query FROM 'xact_lock(?:_shared)?[(](-?[0-9]+)[)]'), 'several'
                )
            WHEN query = 'RELEASE SAVEPOINT dblock' THEN 'several'
        END AS locked
    FROM pg_stat_activity
    OFFSET 0
) AS activity ON activity.pid = locks.pid
LEFT JOIN (
    SELECT DISTINCT pid FROM every WHERE NOT granted AND locktype <> 'advisory'
) AS elsewhere ON elsewhere.pid = locks.pid
ORDER BY locks.classid, locks.objid, locks.objsubid, locks.granted DESC, locks.waitstart, locks.pid
"""

# The other locks that these backends wait for, their blockers, and the blockers of those: the
# chains are followed to their ends, through locks of every type. pg_blocking_pids() locks every
# lock partition for a moment, so it is called once for each waiter of this database. A waiter for a
# row waits for the transaction that changed it, and meanwhile holds the row's tuple lock, which
# names the table. 0 means a prepared transaction.
# For each backend: the tables of this database that it has locked, the strongest locks first.
# Values that the server hides from other roles are null.
WAITS_ELSEWHERE = """
WITH RECURSIVE every AS MATERIALIZED (
    SELECT * FROM pg_locks
), waits AS MATERIALIZED (
    SELECT
        every.pid,
        extract(epoch FROM clock_timestamp() - every.waitstart)::float8 AS waiting,
        concat_ws(
            '/', every.locktype, every.database, every.relation, every.page, every.tuple,
            every.virtualxid, every.transactionid, every.classid, every.objid, every.objsubid
        ) AS lock,
        CASE
            WHEN every.locktype IN ('tuple', 'transactionid') THEN coalesce(
                'a row of ' || coalesce(every.relation, (
                    SELECT row_of.relation
                    FROM every AS row_of
                    WHERE row_of.pid = every.pid AND row_of.locktype = 'tuple' AND row_of.granted
                    LIMIT 1
                ))::regclass::text,
                'another transaction'
            )
            WHEN every.locktype = 'relation' THEN every.relation::regclass::text
            ELSE every.locktype
        END AS waits_for,
        pg_blocking_pids(every.pid) AS blocked_by
    FROM every
    JOIN pg_stat_activity AS activity ON activity.pid = every.pid
    WHERE NOT every.granted
        AND every.locktype <> 'advisory'
        AND activity.datname = current_database()
), chain (pid) AS (
    SELECT pid FROM unnest(%(pids)s::int[]) AS pid
    UNION
    SELECT blocker.pid
    FROM chain
    JOIN waits ON waits.pid = chain.pid
    CROSS JOIN LATERAL unnest(waits.blocked_by) AS blocker (pid)
)
SELECT
    chain.pid,
    waits.waits_for,
    waits.lock,
    waits.waiting,
    coalesce(waits.blocked_by, '{}'),
    ARRAY(
        SELECT tables.oid::regclass::text
        FROM every AS held
        JOIN pg_class AS tables ON tables.oid = held.relation AND tables.relkind IN ('r', 'p', 'm')
        WHERE held.pid = chain.pid
            AND held.locktype = 'relation'
            AND held.granted
            AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND tables.relnamespace <> 'pg_catalog'::regnamespace
        GROUP BY tables.oid
        ORDER BY max(array_position(ARRAY[
            'AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock',
            'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'
        ], held.mode)) DESC, tables.oid
        LIMIT 5
    ),
    activity.application_name,
    extract(epoch FROM clock_timestamp() - activity.xact_start)::float8,
    activity.usename::text,
    host(activity.client_addr),
    activity.state,
    activity.query,
    coalesce(activity.query = '<insufficient privilege>', false),
    activity.backend_start
FROM chain
LEFT JOIN waits ON waits.pid = chain.pid
LEFT JOIN pg_stat_activity AS activity ON activity.pid = chain.pid
ORDER BY waits.waiting DESC NULLS LAST, chain.pid
"""

# The leases by the server's clock, read once for all. Leases that have ended come last, with a
# limit, because a table can have a million. Each branch is limited before the waiters are looked
# up. Waiters wait for a name, whichever of its slots becomes free, so the name's first row lists
# all waiters. (A ticket's slot says how many permits are requested, or whether a reader or a writer
# waits.) The metadata is returned as text, because the connection's settings decide how jsonb is
# decoded.
FENCED_LEASES = """
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), lease AS (
    (
        SELECT lock.*, clock.now, false AS ended
        FROM clock, django_dblock_fencedlock AS lock
        WHERE lock.expires_at + lock.lock_delay > clock.now
            AND (%(names)s::text[] IS NULL OR lock.name = ANY(%(names)s::text[]))
            AND (
                %(like)s::text IS NULL
                OR lock.name LIKE %(like)s::text OR lock.name LIKE %(like)s::text || '~%%'
            )
            AND CASE %(namespace)s::text
                WHEN '' THEN strpos(lock.name, '::') = 0
                ELSE coalesce(starts_with(lock.name, %(namespace)s::text || '::'), true)
            END
    )
    UNION ALL
    (
        SELECT lock.*, clock.now, true
        FROM clock, django_dblock_fencedlock AS lock
        WHERE %(expired)s AND lock.grants > 0  -- a slot that was never granted is nobody's
            AND lock.expires_at + lock.lock_delay <= clock.now
            AND (%(names)s::text[] IS NULL OR lock.name = ANY(%(names)s::text[]))
            AND (
                %(like)s::text IS NULL
                OR lock.name LIKE %(like)s::text OR lock.name LIKE %(like)s::text || '~%%'
            )
            AND CASE %(namespace)s::text
                WHEN '' THEN strpos(lock.name, '::') = 0
                ELSE coalesce(starts_with(lock.name, %(namespace)s::text || '::'), true)
            END
        ORDER BY lock.name, lock.slot
        LIMIT %(limit)s::bigint
    )
)
SELECT
    lease.name,
    lease.slot,
    CASE
        WHEN lease.expires_at > lease.now THEN 'held'
        WHEN NOT lease.ended THEN 'delayed'
        ELSE 'expired'
    END,
    lease.token,
    lease.owner,
    extract(epoch FROM lease.now - lease.acquired_at)::float8,
    extract(epoch FROM lease.now - lease.renewed_at)::float8,
    extract(epoch FROM lease.expires_at - lease.now)::float8,
    extract(epoch FROM lease.lock_delay)::float8,
    extract(epoch FROM lease.expires_at + lease.lock_delay - lease.now)::float8,
    lease.grants,
    lease.metadata::text,
    CASE
        WHEN row_number() OVER (PARTITION BY lease.name ORDER BY lease.ended, lease.slot) = 1
        THEN ARRAY(
            SELECT ticket.owner::text
            FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = lease.name AND ticket.expires_at > lease.now
            ORDER BY ticket.id
        )
        ELSE '{}'
    END
FROM lease
ORDER BY lease.ended, lease.name, lease.slot
"""

# The latches that somebody waits for, with the number of their parts. A waiter's ticket has the
# latch's name with a suffix.
AWAITED_LATCHES = """
SELECT
    queue.latch, done.parts,
    extract(epoch FROM clock_timestamp() - done.latest)::float8, queue.waiting
FROM (
    SELECT left(name, -length('~latch')) AS latch, array_agg(owner::text ORDER BY id) AS waiting
    FROM django_dblock_fencedticket
    WHERE right(name, length('~latch')) = '~latch' AND expires_at > clock_timestamp()
        AND (%(name)s::text IS NULL OR name = %(name)s::text || '~latch')
        AND CASE %(namespace)s::text
            WHEN '' THEN strpos(name, '::') = 0
            ELSE coalesce(starts_with(name, %(namespace)s::text || '::'), true)
        END
    GROUP BY name
) AS queue
CROSS JOIN LATERAL (
    SELECT count(*) AS parts, max(done_at) AS latest
    FROM django_dblock_latchpart
    WHERE django_dblock_latchpart.latch = queue.latch
) AS done
ORDER BY queue.latch
"""

# An operator who looks at the package's tables waits for nobody who has locked a table for itself.
SHORT_WAIT = "SELECT set_config('lock_timeout', '1s', true)"

# The backends that have locked one of the package's tables for themselves, or wait to do so.
# pg_locks is read without a lock on the tables.
TABLE_LOCKERS = """
SELECT DISTINCT locked.pid, session.application_name
FROM pg_locks AS locked
LEFT JOIN pg_stat_activity AS session ON session.pid = locked.pid
WHERE locked.mode = 'AccessExclusiveLock'
    AND locked.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND locked.relation IN (
        to_regclass('django_dblock_fencedlock'),
        to_regclass('django_dblock_fencedticket'),
        to_regclass('django_dblock_latchpart'),
        to_regclass('django_dblock_idempotencykey')
    )
    AND locked.pid <> pg_backend_pid()
ORDER BY locked.pid
"""


# The statements of the helpers for tests. PostgreSQL manual: 53.13 "pg_locks".


# The backends that hold or await the lock of one number: whether it is held, and whether shared.
BACKENDS = """
SELECT pid, granted, mode = 'ShareLock'
FROM pg_locks
WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint, objid::bigint, objsubid) = (%(classid)s, %(objid)s, 1)
ORDER BY granted DESC, waitstart, pid
"""
