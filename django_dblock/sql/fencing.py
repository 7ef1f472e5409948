"""The statements of the fenced locks. The protocol they make up: :mod:`django_dblock.fencing`.

PostgreSQL manual: 13.3.2 "Row-Level Locks", 13.2.1 "Read Committed Isolation Level", "SELECT, The
Locking Clause", 19.5.1 "synchronous_commit".

Common to all:

- Time is ``clock_timestamp()``, read where it is used: ``now()`` and ``statement_timestamp()``
  stand still while a statement waits for a row.
- The identity of a grant is (name, slot, token). The owner is for people.
- They write, or lock rows, so a standby refuses each of them by itself (25006), before it runs.
- No session state: each goes through a pooler in transaction mode.
- The tables are named without a schema: acquiring looks along the caller's search_path. From then
  on the schema in which the row was found is put before them (`django_dblock.fencing.store`).
- ``set_config('synchronous_commit', …, true)`` in a statement counts for the commit of that very
  statement, and for nothing after it (tests/fencing/test_facts.py pins these and the rest).
"""

from django_dblock.sql.notify import IS_NEXT

# Take the lease if it is free: the latest one has expired, its lock_delay too, and no transaction
# guarded by it is still open. An open guard holds the row FOR KEY SHARE, so SKIP LOCKED passes it
# by; a plain UPDATE would not, because it does not conflict with KEY SHARE.
# A try that fails has locked nothing and written nothing. The token is computed in SET, when the
# row is ours: computed earlier, two who wait for one row could get theirs in the wrong order. It is
# never behind the clock, so neither a purge of the row nor a crash that lost it brings an old token
# back.
# The schema in which the row was found goes with the grant: every later statement of the lease, on
# whatever connection and search_path, names it. 1259 is the oid of pg_class.
# This is the common case by itself, because parsing and planning is what a lease costs: ACQUIRE
# takes three times as long.
TAKE = """
UPDATE django_dblock_fencedlock AS lease
SET token = GREATEST(
        lease.token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
    ),
    owner = %(owner)s,
    acquired_at = clock_timestamp(),
    renewed_at = clock_timestamp(),
    expires_at = clock_timestamp() + %(ttl)s * interval '1 second',
    lock_delay = %(lock_delay)s * interval '1 second',
    grants = lease.grants + 1,
    metadata = %(metadata)s::jsonb
WHERE id = (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s AND slot = %(slot)s
        AND expires_at + lock_delay <= clock_timestamp()
    FOR UPDATE SKIP LOCKED
)
RETURNING 'acquired', lease.token, lease.expires_at, NULL::float8, NULL,
    (pg_identify_object(1259, lease.tableoid, 0)).schema,
    set_config('synchronous_commit',
        CASE current_setting('synchronous_commit')
            WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
"""

# The whole of it: take the lease if it is free, make the row if there is none, or say who holds the
# lease. No result row means that another session made the row just now: try again at once.
# In turn, it is taken only if nobody alive stands in the queue before our ticket, or at all if we
# have no ticket. The ticket goes with the grant. Where in_turn is false the planner drops that.
# CockroachDB, whose advisory locks are no-ops, is refused: there no row is ever made.
ACQUIRE = """
WITH free AS (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s AND slot = %(slot)s
        AND expires_at + lock_delay <= clock_timestamp()
        AND (NOT %(in_turn)s OR NOT EXISTS (
            SELECT FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = %(name)s AND ticket.slot = %(slot)s
                AND ticket.expires_at > clock_timestamp()
                AND ticket.id < coalesce(%(ticket)s, 9223372036854775807)
        ))
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = GREATEST(
            lease.token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
        ),
        owner = %(owner)s,
        acquired_at = clock_timestamp(),
        renewed_at = clock_timestamp(),
        expires_at = clock_timestamp() + %(ttl)s * interval '1 second',
        lock_delay = %(lock_delay)s * interval '1 second',
        grants = lease.grants + 1,
        metadata = %(metadata)s::jsonb
    FROM free
    WHERE lease.id = free.id
    RETURNING lease.token, lease.expires_at, lease.tableoid
), made AS (
    INSERT INTO django_dblock_fencedlock (
        name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata
    )
    SELECT
        %(name)s, %(slot)s, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, %(owner)s,
        clock_timestamp(), clock_timestamp(), clock_timestamp() + %(ttl)s * interval '1 second',
        %(lock_delay)s * interval '1 second', 1, %(metadata)s::jsonb
    WHERE NOT EXISTS (
            SELECT FROM django_dblock_fencedlock WHERE name = %(name)s AND slot = %(slot)s
        )
        AND version() NOT LIKE '%%Cockroach%%'
        AND (NOT %(in_turn)s OR NOT EXISTS (
            SELECT FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = %(name)s AND ticket.slot = %(slot)s
                AND ticket.expires_at > clock_timestamp()
                AND ticket.id < coalesce(%(ticket)s, 9223372036854775807)
        ))
    ON CONFLICT (name, slot) DO NOTHING
    RETURNING token, expires_at, tableoid
), had AS (
    SELECT token, expires_at, tableoid FROM taken
    UNION ALL
    SELECT token, expires_at, tableoid FROM made
), left_queue AS (
    DELETE FROM django_dblock_fencedticket
    WHERE id = %(ticket)s AND name = %(name)s AND EXISTS (SELECT FROM had)
)
SELECT
    'acquired', had.token, had.expires_at, NULL::float8, NULL,
    (pg_identify_object(1259, had.tableoid, 0)).schema,
    set_config('synchronous_commit',
        CASE current_setting('synchronous_commit')
            WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
FROM had
UNION ALL
SELECT
    'held', token, expires_at,
    extract(epoch FROM expires_at + lock_delay - clock_timestamp())::float8, owner, NULL, NULL
FROM django_dblock_fencedlock
WHERE name = %(name)s AND slot = %(slot)s AND NOT EXISTS (SELECT FROM had)
UNION ALL
SELECT 'cockroach', NULL, NULL, NULL, NULL, NULL, NULL WHERE version() LIKE '%%Cockroach%%'
"""

# Renew any number of leases, each at most once. A row that somebody has locked just now is left
# alone, so that it does not hold up the others: it is told as not renewed, but still ours. An
# expiry never moves back, so every answer that arrives, in whatever order, tells the truth.
# Released and expired leases are not brought back.
RENEW = """
WITH wanted AS MATERIALIZED (
    SELECT *
    FROM unnest(%(names)s::text[], %(slots)s::int[], %(tokens)s::bigint[], %(ttls)s::float8[])
        AS wanted (name, slot, token, ttl)
), ours AS (
    SELECT lease.id, wanted.ttl
    FROM wanted
    JOIN django_dblock_fencedlock AS lease
        ON lease.name = wanted.name AND lease.slot = wanted.slot AND lease.token = wanted.token
    WHERE lease.expires_at > clock_timestamp()
    FOR NO KEY UPDATE OF lease SKIP LOCKED
), renewed AS (
    UPDATE django_dblock_fencedlock AS lease
    SET renewed_at = clock_timestamp(),
        expires_at = GREATEST(
            lease.expires_at, clock_timestamp() + ours.ttl * interval '1 second'
        )
    FROM ours
    WHERE lease.id = ours.id
    RETURNING lease.name, lease.slot, lease.token, lease.expires_at,
        set_config('synchronous_commit',
            CASE current_setting('synchronous_commit')
                WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
)
SELECT
    wanted.name, wanted.slot, wanted.token, renewed.expires_at,
    renewed.expires_at IS NOT NULL OR EXISTS (
        SELECT FROM django_dblock_fencedlock AS lease
        WHERE lease.name = wanted.name AND lease.slot = wanted.slot
            AND lease.token = wanted.token AND lease.expires_at > clock_timestamp()
    )
FROM wanted
LEFT JOIN renewed USING (name, slot, token)
"""

# Give the lease back. What is left of hold_at_least becomes the lock_delay, so that a renewal that
# was under way finds nothing to renew. No row: somebody else has had it since. It does not wait for
# a standby: a release that a failover loses is a lease that expires.
# If a waiter has asked for it (awaited_until), the first waiter in the queue is notified in this
# very commit. Nobody else is: each COMMIT with a NOTIFY takes a lock of the whole server, and of
# many waiters that are woken only one can have the lease.
RELEASE = """
UPDATE django_dblock_fencedlock
SET expires_at = LEAST(expires_at, clock_timestamp()),
    lock_delay = GREATEST(
        acquired_at + %(hold_at_least)s * interval '1 second' - clock_timestamp(), interval '0'
    )
WHERE name = %(name)s AND slot = %(slot)s AND token = %(token)s
RETURNING
    CASE WHEN awaited_until > clock_timestamp() THEN (
        SELECT pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text)::text
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = %(name)s AND ticket.expires_at > clock_timestamp()
        ORDER BY ticket.id
        LIMIT 1
    ) END,
    set_config('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'off' THEN 'off' ELSE 'local' END, true)
"""

# In a transaction: is the lease still ours, and may nobody take it before this transaction ends?
# KEY SHARE lets our own renewals through and makes whoever wants the lease pass by. Should we
# freeze, the server ends the transaction: nobody waits for us indefinitely. A stricter limit stays.
GUARD = """
SELECT token, set_config(
    'idle_in_transaction_session_timeout',
    CASE
        WHEN current_setting('idle_in_transaction_session_timeout')::interval
            BETWEEN interval '1 microsecond' AND %(idle_timeout)s * interval '1 millisecond'
        THEN current_setting('idle_in_transaction_session_timeout')
        ELSE %(idle_timeout)s::text
    END,
    true
)
FROM django_dblock_fencedlock
WHERE name = %(name)s AND slot = %(slot)s AND token = %(token)s
    AND expires_at > clock_timestamp()
FOR KEY SHARE
"""

# An operator ends a lease: the token is passed, so the old holder can neither renew, nor release,
# nor write under a guard. Waits for guarded transactions that are open. The lock_delay, if there is
# one, counts from now. With a token it ends that grant, but no later grant. A row is
# locked when the WHERE has left it, so the lock_timeout that is set there counts for that.
FORCE_RELEASE = """
WITH lease AS MATERIALIZED (
    SELECT id, expires_at > clock_timestamp() AS held
    FROM django_dblock_fencedlock
    WHERE name = %(name)s AND slot = %(slot)s
        AND (%(token)s::bigint IS NULL OR token = %(token)s::bigint)
        AND set_config(
            'lock_timeout', coalesce(%(patience)s::text, current_setting('lock_timeout')), true
        ) IS NOT NULL
    FOR UPDATE
)
UPDATE django_dblock_fencedlock AS released
SET token = GREATEST(
        released.token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
    ),
    expires_at = LEAST(released.expires_at, clock_timestamp())
FROM lease
WHERE released.id = lease.id
RETURNING lease.held, CASE WHEN released.awaited_until > clock_timestamp() THEN (
    SELECT count(pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text))
    FROM django_dblock_fencedticket AS ticket
    WHERE ticket.name = %(name)s AND {is_next}
) END
""".replace("{is_next}", IS_NEXT)

# Remove rows that nobody has wanted for so long that the clock has left their tokens behind: a new
# row's token is the clock's, so it is greater than any that this row ever had.
PURGE = """
WITH idle AS (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE expires_at + lock_delay < clock_timestamp() - %(idle)s * interval '1 second'
        AND token < floor(
            extract(epoch FROM clock_timestamp() - %(idle)s * interval '1 second') * 1000
        )::bigint
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM django_dblock_fencedlock AS lease
USING idle
WHERE lease.id = idle.id
"""

# How many rows PURGE would remove now, were none of them in use.
COUNT_IDLE = """
SELECT count(*)
FROM django_dblock_fencedlock
WHERE expires_at + lock_delay < clock_timestamp() - %(idle)s * interval '1 second'
    AND token < floor(
        extract(epoch FROM clock_timestamp() - %(idle)s * interval '1 second') * 1000
    )::bigint
"""

# Whether a server that refused to write is a standby.
IS_STANDBY = "SELECT pg_is_in_recovery()"

# The queue of waiters: a place in it, staying in it, leaving it. A ticket that a crash loses costs
# its owner the place, so these commits wait for no disk. After a failover or a restore the sequence
# may repeat an id, so a ticket is known by its name and owner as well.
TAKE_TICKET = """
INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)
VALUES (
    %(name)s, %(slot)s, %(owner)s, clock_timestamp() + %(patience)s * interval '1 second'
)
RETURNING id, tableoid::text || '.' || id::text, set_config('synchronous_commit', 'off', true)
"""

# Show that the waiter lives, mark the lease as awaited, and look at both. The mark is written at
# most once in half of its time, however many wait. A row that a release has locked is waited for,
# and then seen as the release left it: either the release sees the mark, or this sees the release.
# In the order of slots, so that two waiters that mark several rows never deadlock.
# Of semaphores and read-write locks there are more rows: only the held ones of `scope`, the slots
# that this waiter can use, are counted. Told is the lease that ends first, a held one if there is.
# A ticket's slot is 1 - units, so a reader of a read-write lock (slot 1) weighs nothing: those
# behind wait for it only if they say so (`least`).
STAY = """
WITH shown AS (
    UPDATE django_dblock_fencedticket
    SET expires_at = clock_timestamp() + %(patience)s * interval '1 second'
    WHERE id = %(ticket)s AND name = %(name)s AND owner = %(owner)s
    RETURNING set_config('synchronous_commit', 'off', true)
), unmarked AS MATERIALIZED (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s AND coalesce(awaited_until, '-infinity')
        < clock_timestamp() + %(patience)s * interval '1 second' / 2
    ORDER BY slot
    FOR NO KEY UPDATE
), marked AS (
    UPDATE django_dblock_fencedlock AS lease
    SET awaited_until = clock_timestamp() + %(patience)s * interval '1 second'
    FROM unmarked
    WHERE lease.id = unmarked.id
    RETURNING lease.id, lease.slot, lease.expires_at + lease.lock_delay AS ends, lease.token,
        lease.owner
), seen AS (
    SELECT * FROM marked
    UNION ALL
    SELECT id, slot, expires_at + lock_delay, token, owner
    FROM django_dblock_fencedlock
    WHERE name = %(name)s AND id NOT IN (SELECT id FROM marked)
)
SELECT
    (SELECT count(*) FROM shown),
    (SELECT coalesce(sum(GREATEST(1 - ticket.slot, %(least)s)), 0)
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = %(name)s AND ticket.expires_at > clock_timestamp()
            AND ticket.id < %(ticket)s),
    (SELECT count(*) FROM seen WHERE slot < %(scope)s AND ends > clock_timestamp()),
    extract(epoch FROM seen.ends - clock_timestamp())::float8,
    seen.token,
    seen.owner
FROM (SELECT) AS always
LEFT JOIN seen ON true
ORDER BY seen.ends <= clock_timestamp(), seen.ends
LIMIT 1
"""

# The same look, for a waiter that nobody can wake, between two STAYs. It writes nothing.
LOOK = """
SELECT
    (SELECT count(*)
        FROM django_dblock_fencedticket
        WHERE id = %(ticket)s AND name = %(name)s AND owner = %(owner)s),
    (SELECT coalesce(sum(GREATEST(1 - ticket.slot, %(least)s)), 0)
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = %(name)s AND ticket.expires_at > clock_timestamp()
            AND ticket.id < %(ticket)s),
    (SELECT count(*)
        FROM django_dblock_fencedlock
        WHERE name = %(name)s AND slot < %(scope)s
            AND expires_at + lock_delay > clock_timestamp()),
    extract(epoch FROM seen.expires_at + seen.lock_delay - clock_timestamp())::float8,
    seen.token,
    seen.owner
FROM (SELECT) AS always
LEFT JOIN django_dblock_fencedlock AS seen ON seen.name = %(name)s
ORDER BY seen.expires_at + seen.lock_delay <= clock_timestamp(), seen.expires_at + seen.lock_delay
LIMIT 1
"""

# Leave the queue without the lease. Should it be free, the wake-up was perhaps for this waiter, or
# this waiter stood in the way of the next: so the next is notified.
DROP_TICKET = """
WITH gone AS (
    DELETE FROM django_dblock_fencedticket
    WHERE id = %(ticket)s AND name = %(name)s AND owner = %(owner)s
    RETURNING set_config('synchronous_commit', 'off', true)
)
SELECT (SELECT count(*) FROM gone), (
    SELECT count(pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text))
    FROM django_dblock_fencedticket AS ticket
    WHERE ticket.name = %(name)s AND ticket.id <> %(ticket)s AND {is_next}
        AND EXISTS (
            SELECT FROM django_dblock_fencedlock AS lease
            WHERE lease.name = %(name)s AND lease.expires_at + lease.lock_delay <= clock_timestamp()
        )
)
""".replace("{is_next}", IS_NEXT)

# Waiters that died left their tickets behind.
PURGE_TICKETS = "DELETE FROM django_dblock_fencedticket WHERE expires_at < clock_timestamp()"
