"""The statements of semaphores, leadership, partitions, ``once_per`` and latches.

Those on leases work on the rows of the lease protocol (:mod:`django_dblock.fencing`): a row is
(name, slot), a grant is (name, slot, token). Renewals, guards and forced releases are the
statements in :mod:`django_dblock.sql.fencing`. These statements only differ in which slots a caller
may take. Those of the read-write lock are in :mod:`django_dblock.sql.rwlock`.

A release notifies the waiters in the queue that can go on now, in its own commit, and only if the
released row is marked as awaited (`sql.fencing.STAY`).

PostgreSQL manual: 13.3.2 "Row-Level Locks", 13.2.1 "Read Committed Isolation Level", "SELECT, The
Locking Clause".
"""

from django_dblock.sql.commits import DURABLE, UNAWAITED

# Take `units` free slots of 0 … permits-1, or none if fewer than `at_least` are free. Slots that
# another statement has locked are skipped, so callers never wait for each other. A slot is free
# like a lease: its expiry and its lock_delay have passed, and no transaction under its guard is
# open. (An open guard holds the row FOR KEY SHARE, so SKIP LOCKED skips the row.)
# If too few rows exist, the statement makes rows for free slots and returns "made": try again.
# The rows are made free, not granted, because an INSERT that loses a race could not be undone
# within the statement, and then some of the units would be held.
# A caller that needs several slots counts the free slots first, so that a try that must fail locks
# no row.
# In turn: the slot of a ticket is 1 - units. A caller takes its units only if the free slots
# suffice for all live tickets in front and for the caller. A waiter that is granted its slots
# notifies the next waiter, if that waiter's units are free, too. Otherwise a wake-up could be lost:
# two concurrent releases may each see one free slot, and notify the same waiter.
ACQUIRE_SLOTS = """
WITH free AS MATERIALIZED (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot >= 0 AND slot < %(permits)s
        AND expires_at + lock_delay <= clock_timestamp()
        AND (%(at_least)s = 1 OR (
            SELECT count(*)
            FROM django_dblock_fencedlock
            WHERE name = %(name)s::text AND slot >= 0 AND slot < %(permits)s
                AND expires_at + lock_delay <= clock_timestamp()
        ) >= %(at_least)s)
    ORDER BY slot
    LIMIT %(units)s
    FOR UPDATE SKIP LOCKED
), granted AS MATERIALIZED (
    SELECT id
    FROM free
    WHERE (SELECT count(*) FROM free) >= %(at_least)s
        AND (NOT %(in_turn)s OR %(units)s + (
            SELECT coalesce(sum(1 - ticket.slot), 0)
            FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = %(name)s::text AND ticket.expires_at > clock_timestamp()
                AND ticket.id < coalesce(%(ticket)s, 9223372036854775807)
        ) <= %(permits)s - (
            SELECT count(*)
            FROM django_dblock_fencedlock
            WHERE name = %(name)s::text AND slot >= 0 AND slot < %(permits)s
                AND expires_at + lock_delay > clock_timestamp()
        ))
), taken AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = GREATEST(
            lease.token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
        ),
        owner = %(owner)s::text,
        acquired_at = clock_timestamp(),
        renewed_at = clock_timestamp(),
        expires_at = clock_timestamp() + %(ttl)s * interval '1 second',
        lock_delay = %(lock_delay)s * interval '1 second',
        grants = lease.grants + 1,
        metadata = %(metadata)s::jsonb
    FROM granted
    WHERE lease.id = granted.id
    RETURNING lease.slot, lease.token, lease.expires_at, lease.tableoid
), made AS (
    INSERT INTO django_dblock_fencedlock (
        name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata
    )
    SELECT
        %(name)s::text, missing.slot, 0, '',
        clock_timestamp(), clock_timestamp(), clock_timestamp(), interval '0', 0, '{}'
    FROM generate_series(0, %(permits)s - 1) AS missing (slot)
    WHERE (SELECT count(*) FROM free) < %(units)s
        AND NOT EXISTS (
            SELECT FROM django_dblock_fencedlock AS lease
            WHERE lease.name = %(name)s::text AND lease.slot = missing.slot
        )
    ORDER BY missing.slot
    LIMIT GREATEST(%(units)s, 8)
    ON CONFLICT (name, slot) DO NOTHING
    RETURNING slot
), left_queue AS (
    DELETE FROM django_dblock_fencedticket
    WHERE id = %(ticket)s AND name = %(name)s::text AND EXISTS (SELECT FROM taken)
)
SELECT
    'acquired', slot, token, expires_at, NULL::float8,
    (pg_identify_object(1259, tableoid, 0)).schema,
    CASE WHEN %(ticket)s::bigint IS NOT NULL THEN (
        SELECT count(pg_notify('django_dblock', next.tableoid::text || '.' || next.id::text))
        FROM (
            SELECT ticket.tableoid, ticket.id, 1 - ticket.slot AS units
            FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = %(name)s::text AND ticket.id <> %(ticket)s
                AND ticket.expires_at > clock_timestamp()
            ORDER BY ticket.id
            LIMIT 1
        ) AS next
        WHERE next.units + %(units)s <= (
            SELECT count(*)
            FROM django_dblock_fencedlock
            WHERE name = %(name)s::text AND slot >= 0 AND slot < %(permits)s
                AND expires_at + lock_delay <= clock_timestamp()
        )
    ) END,
    {durable}
FROM taken
UNION ALL
SELECT 'made', NULL, NULL, NULL, NULL, NULL, NULL, NULL
WHERE EXISTS (SELECT FROM made) AND NOT EXISTS (SELECT FROM taken)
UNION ALL (
    SELECT
        'held', slot, token, expires_at,
        extract(epoch FROM expires_at + lock_delay - clock_timestamp())::float8,
        owner, count(*) OVER (), NULL
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot >= 0 AND slot < %(permits)s
        AND expires_at + lock_delay > clock_timestamp()
        AND NOT EXISTS (SELECT FROM taken) AND NOT EXISTS (SELECT FROM made)
    ORDER BY expires_at + lock_delay
    LIMIT 1
)
""".replace("{durable}", DURABLE)

# Release several slots, as sql.fencing.RELEASE releases one. The rows are locked in the order of
# their slots, as waiters lock them (sql.fencing.STAY), so a release and a waiter never deadlock.
# If a waiter has marked one of the slots as awaited, the first waiters are notified whose units fit
# into the slots that are free then. No waiter behind a first waiter that needs more is notified.
RELEASE_SLOTS = """
WITH wanted AS MATERIALIZED (
    SELECT *
    FROM unnest(%(names)s::text[], %(slots)s::int[], %(tokens)s::bigint[])
        AS wanted (name, slot, token)
), ours AS MATERIALIZED (
    SELECT lease.id
    FROM wanted
    JOIN django_dblock_fencedlock AS lease
        ON lease.name = wanted.name AND lease.slot = wanted.slot AND lease.token = wanted.token
    ORDER BY lease.name, lease.slot
    FOR NO KEY UPDATE OF lease
), released AS (
    UPDATE django_dblock_fencedlock AS lease
    SET expires_at = LEAST(lease.expires_at, clock_timestamp()),
        lock_delay = GREATEST(
            lease.acquired_at + %(hold_at_least)s * interval '1 second'
                - LEAST(lease.expires_at, clock_timestamp()),
            CASE WHEN %(was_lost)s THEN lease.lock_delay ELSE interval '0' END
        )
    FROM ours
    WHERE lease.id = ours.id
    RETURNING lease.id, lease.name, lease.slot,
        lease.awaited_until > clock_timestamp() AS is_awaited,
        CASE WHEN %(hold_at_least)s <= 0 THEN {unawaited} ELSE {durable} END
)
SELECT name, slot, (
    SELECT count(pg_notify('django_dblock', queue.topic))
    FROM (
        SELECT ticket.tableoid::text || '.' || ticket.id::text AS topic,
            sum(1 - ticket.slot) OVER (ORDER BY ticket.id) AS units
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = %(name)s::text AND ticket.expires_at > clock_timestamp()
            AND EXISTS (SELECT FROM released WHERE is_awaited)
    ) AS queue
    WHERE queue.units <= (
        SELECT count(*)
        FROM django_dblock_fencedlock
        WHERE name = %(name)s::text
            AND (expires_at + lock_delay <= clock_timestamp()
                OR id IN (SELECT id FROM released))
    )
)
FROM released
""".replace("{durable}", DURABLE).replace("{unawaited}", UNAWAITED)

# The holder of the lease, by the server's clock; no row if there is no holder.
HOLDER = """
SELECT
    token, owner, acquired_at, expires_at,
    extract(epoch FROM expires_at - clock_timestamp())::float8, metadata::text
FROM django_dblock_fencedlock
WHERE name = %(name)s::text AND slot = 0 AND expires_at > clock_timestamp()
"""

# The live workers: their slots in ascending order, and the `count` of partitions that each uses.
WORKERS = """
SELECT slot, (metadata ->> 'count')::int
FROM django_dblock_fencedlock
WHERE name = %(name)s::text AND expires_at > clock_timestamp()
ORDER BY slot
"""

# The clock that decides the period.
CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"

# Which of these keys of run_once() have a finished run.
FINISHED = """
SELECT key
FROM django_dblock_idempotencykey
WHERE namespace = %(namespace)s AND scope = %(scope)s AND key = ANY(%(keys)s)
    AND completed_at IS NOT NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""

# A latch has a row for each part that is done. The row is written in the part's own transaction,
# so the part counts from that transaction's COMMIT. Two parts write two rows, so neither waits for
# the other. If a waiter is in the queue, the result is the schema of the part's row, else NULL.
# A part beyond `most`, unless that is NULL, is not counted: then the result is "surplus". Parts of
# transactions that are still open are not seen. A SERIALIZABLE transaction doesn't count the other
# parts: the server would refuse one of two transactions that each read what the other writes.
COUNT_DOWN = """
WITH others AS MATERIALIZED (
    SELECT CASE WHEN %(most)s::int IS NULL
        OR current_setting('transaction_isolation') = 'serializable'
    THEN false ELSE (
        SELECT count(*) >= %(most)s::int
        FROM (
            SELECT FROM django_dblock_latchpart
            WHERE latch = %(latch)s::text AND part <> %(part)s::text
            LIMIT %(most)s::int
        ) AS counted
    ) END AS suffice
), counted AS (
    INSERT INTO django_dblock_latchpart (latch, part, done_at)
    SELECT %(latch)s::text, %(part)s::text, clock_timestamp()
    WHERE NOT (SELECT suffice FROM others)
    ON CONFLICT (latch, part) DO NOTHING
    RETURNING CASE WHEN EXISTS (
        SELECT FROM django_dblock_fencedticket
        WHERE name = %(queue)s::text AND expires_at > clock_timestamp()
    ) THEN (pg_identify_object(1259, tableoid, 0)).schema END AS schema
)
SELECT 'counted', schema FROM counted
UNION ALL
SELECT 'surplus', NULL
WHERE (SELECT suffice FROM others) AND NOT EXISTS (
    SELECT FROM django_dblock_latchpart WHERE latch = %(latch)s::text AND part = %(part)s::text
)
"""
PARTS_DONE = "SELECT part FROM django_dblock_latchpart WHERE latch = %(latch)s::text ORDER BY part"
COUNT_PARTS = "SELECT count(*) FROM django_dblock_latchpart WHERE latch = %(latch)s::text"

# If the latch is open, notify all its waiters. Sent after the COMMIT of a part, because no
# statement before it sees the parts that are about to be committed: of the parts that are counted
# at the same time, the last to commit sees all others.
WAKE_LATCH = """
SELECT count(pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text))
FROM django_dblock_fencedticket AS ticket
WHERE ticket.name = %(queue)s::text AND ticket.expires_at > clock_timestamp()
    AND (SELECT count(*) FROM django_dblock_latchpart WHERE latch = %(latch)s::text) >= %(parties)s
"""

# The number of missing parts. If no part is missing, the waiter's ticket is deleted.
LOOK_AT_LATCH = """
WITH parts AS (
    SELECT %(parties)s - count(*) AS missing
    FROM django_dblock_latchpart
    WHERE latch = %(latch)s::text AND (%(names)s::text[] IS NULL OR part = ANY(%(names)s::text[]))
), left_queue AS (
    DELETE FROM django_dblock_fencedticket
    WHERE id = %(ticket)s AND name = %(queue)s::text AND (SELECT missing FROM parts) <= 0
)
SELECT missing FROM parts
"""

# The number of missing parts, for a waiter in the queue. With `patience`, its ticket is prolonged.
STAY_AT_LATCH = """
WITH shown AS (
    UPDATE django_dblock_fencedticket
    SET expires_at = clock_timestamp() + %(patience)s::float8 * interval '1 second'
    WHERE id = %(ticket)s AND name = %(queue)s::text AND owner = %(owner)s::text
        AND %(patience)s::float8 IS NOT NULL
    RETURNING {unawaited}
)
SELECT
    EXISTS (
        SELECT FROM django_dblock_fencedticket
        WHERE id = %(ticket)s AND name = %(queue)s::text AND owner = %(owner)s::text
    ),
    %(parties)s - count(*)
FROM django_dblock_latchpart
WHERE latch = %(latch)s::text AND (%(names)s::text[] IS NULL OR part = ANY(%(names)s::text[]))
""".replace("{unawaited}", UNAWAITED)

RESET_LATCH = "DELETE FROM django_dblock_latchpart WHERE latch = %(latch)s::text RETURNING part"

# Delete all rows of latches whose latest part is older than `idle`. A latch is always purged as a
# whole, because it would otherwise close again.
PURGE_LATCHES = """
WITH gone AS (
    DELETE FROM django_dblock_latchpart
    WHERE latch IN (
        SELECT latch
        FROM django_dblock_latchpart
        GROUP BY latch
        HAVING max(done_at) < clock_timestamp() - %(idle)s * interval '1 second'
        LIMIT %(batch)s
    )
    RETURNING 1
)
SELECT count(*) FROM gone
"""
COUNT_IDLE_PARTS = """
SELECT count(*)
FROM (
    SELECT max(done_at) OVER (PARTITION BY latch) AS latest FROM django_dblock_latchpart
) AS parts
WHERE latest < clock_timestamp() - %(idle)s * interval '1 second'
"""
