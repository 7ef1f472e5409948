"""The statements of the fenced locks; :mod:`django_dblock.fencing` states the protocol.

PostgreSQL manual: 13.3.2 "Row-Level Locks", 13.2.1 "Read Committed Isolation Level", "SELECT, The
Locking Clause", 19.5.1 "synchronous_commit".

Common to all:

- Time is ``clock_timestamp()``, because ``now()`` and ``statement_timestamp()`` do not advance
  while a statement waits for a row.
- The identity of a grant is (name, slot, token). The owner is only shown.
- Each statement writes or locks rows, so a standby refuses it (25006) before it runs.
- No statement needs session state, so each works through a pooler in transaction mode.
- The tables are named without a schema: acquiring uses the caller's search_path. Later statements
  name the schema in which the row was found (`django_dblock.fencing.store`).
- What a statement's own commit waits for is in :mod:`django_dblock.sql.commits`.
"""

from django_dblock.sql.commits import DURABLE, UNAWAITED
from django_dblock.sql.notify import IS_NEXT

# Take the lease if it is free: the last lease has expired, its lock_delay too, and no transaction
# guarded by it is still open. An open guard holds the row FOR KEY SHARE, so SKIP LOCKED skips the
# row; a plain UPDATE would not, because it does not conflict with KEY SHARE.
# A failed try has locked nothing and written nothing. The token is computed in SET, when the row is
# locked: computed earlier, two processes that wait for one row could get their tokens in the wrong
# order. The token is never behind the clock, so no token repeats after a purge of the row, or after
# a crash that lost the row. The grant returns the schema in which the row was found: every later
# statement of the lease, on any connection and with any search_path, names that schema. 1259 is the
# oid of pg_class. This statement is the common case only, because a lease's cost is parsing and
# planning: ACQUIRE takes three times as long.
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
    {durable}
""".replace("{durable}", DURABLE)

# The same, and insert the row if there is none: for a name of which nothing is known. The INSERT is
# attempted only if there is no row, or if `free` has locked the row, which is then updated (and an
# id is used up). A row that another session inserts meanwhile is locked for a moment, but never
# updated, as `free` is empty then. The commit of that lock is not awaited: while it waited for a
# standby, the other session could not release its lease. No result row means that the lease is not
# free, or that a race for the row was lost; ACQUIRE tells which.
TAKE_OR_INSERT = """
WITH free AS (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s AND slot = %(slot)s
        AND expires_at + lock_delay <= clock_timestamp()
    FOR UPDATE SKIP LOCKED
)
INSERT INTO django_dblock_fencedlock AS lease (
    name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata
)
SELECT
    %(name)s, %(slot)s, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, %(owner)s,
    clock_timestamp(), clock_timestamp(), clock_timestamp() + %(ttl)s * interval '1 second',
    %(lock_delay)s * interval '1 second', 1, %(metadata)s::jsonb
WHERE NOT EXISTS (
    SELECT FROM django_dblock_fencedlock
    WHERE name = %(name)s AND slot = %(slot)s AND id IS DISTINCT FROM (SELECT id FROM free)
)
ON CONFLICT (name, slot) DO UPDATE
SET token = GREATEST(lease.token + 1, EXCLUDED.token),
    owner = EXCLUDED.owner,
    acquired_at = EXCLUDED.acquired_at,
    renewed_at = EXCLUDED.renewed_at,
    expires_at = EXCLUDED.expires_at,
    lock_delay = EXCLUDED.lock_delay,
    grants = lease.grants + 1,
    metadata = EXCLUDED.metadata
WHERE CASE WHEN lease.id = (SELECT id FROM free) THEN true ELSE {unawaited} IS NULL END
RETURNING 'acquired', token, expires_at, NULL::float8, NULL,
    (pg_identify_object(1259, tableoid, 0)).schema,
    {durable}
""".replace("{durable}", DURABLE).replace("{unawaited}", UNAWAITED)

# The complete statement: take the lease if it is free, insert the row if there is none, or return
# the holder. No result row means that another session inserted the row just now: try again at once.
# With in_turn, the lease is taken only if no live ticket is in the queue before the caller's
# ticket; without a ticket, only if the queue has no live ticket. The grant deletes the ticket.
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
    {durable}
FROM had
UNION ALL
SELECT
    'held', token, expires_at,
    extract(epoch FROM expires_at + lock_delay - clock_timestamp())::float8, owner,
    (pg_identify_object(1259, tableoid, 0)).schema, NULL
FROM django_dblock_fencedlock
WHERE name = %(name)s AND slot = %(slot)s AND NOT EXISTS (SELECT FROM had)
""".replace("{durable}", DURABLE)

# Renew any number of leases, each at most once. A row that another transaction has
# locked is skipped, so that it does not delay the others: the result says not renewed, but still
# held. An expiry never moves back, so results may arrive in any order. Released and expired leases
# are not renewed.
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
        {durable}
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
""".replace("{durable}", DURABLE)

# Release the lease if no waiter has marked it (awaited_until), and no hold_at_least or lock_delay
# is to be kept: the common case, in half of RELEASE's time, which is mostly parsing and planning
# the notification. The commit does not wait for the disk, as in RELEASE.
RELEASE_UNAWAITED = """
UPDATE django_dblock_fencedlock
SET expires_at = LEAST(expires_at, clock_timestamp()),
    lock_delay = interval '0'
WHERE name = %(name)s AND slot = %(slot)s AND token = %(token)s
    AND (awaited_until > clock_timestamp()) IS NOT TRUE
RETURNING
    {unawaited}
""".replace("{unawaited}", UNAWAITED)

# The complete release. The rest of hold_at_least becomes the lock_delay, so that a renewal in
# flight finds no lease to renew. The rest counts from the expiry that the release sets: a release
# whose response was lost is sent again later, and must not shorten the rest. A holder that has lost
# its lease keeps the lock_delay as it is: what the holder has sent elsewhere may still be under
# way, and the lock_delay of a grant keeps its hold_at_least. No row: another holder has been
# granted the lease since. The commit waits neither for the disk nor for a standby: if a crash or a
# failover loses the release, the lease expires. Only hold_at_least has to survive, as a grant has.
# If a waiter has marked the lease (awaited_until), this commit notifies the first waiter in the
# queue, and no other waiter: each COMMIT with a NOTIFY takes a lock of the whole server, and only
# one of the woken waiters could be granted the lease. The first column is null if nobody has
# marked the lease.
RELEASE = """
UPDATE django_dblock_fencedlock
SET expires_at = LEAST(expires_at, clock_timestamp()),
    lock_delay = GREATEST(
        acquired_at + %(hold_at_least)s * interval '1 second'
            - LEAST(expires_at, clock_timestamp()),
        CASE WHEN %(was_lost)s THEN lock_delay ELSE interval '0' END
    )
WHERE name = %(name)s AND slot = %(slot)s AND token = %(token)s
RETURNING
    CASE WHEN awaited_until > clock_timestamp() THEN coalesce((
        SELECT pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text)::text
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = %(name)s AND ticket.expires_at > clock_timestamp()
        ORDER BY ticket.id
        LIMIT 1
    ), 'nobody') END,
    CASE WHEN %(hold_at_least)s <= 0 THEN {unawaited} ELSE {durable} END
""".replace("{durable}", DURABLE).replace("{unawaited}", UNAWAITED)

# In a transaction: check that the lease is still held, and keep others from being granted it before
# this transaction ends. KEY SHARE does not conflict with renewals, but with the row lock of a
# grant. If this process freezes, the server ends the transaction, so that no waiter waits
# indefinitely. A stricter timeout of the session stays in force.
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

# An operator ends a lease: the fencing token is advanced, so the old holder can neither renew, nor
# release, nor write under a guard. The commit is durable as that of a grant. The statement waits
# for open guarded transactions. A lock_delay counts from now, also the one that a grant has for its
# hold_at_least. With a token the statement ends that grant, but no later grant. A row is locked
# after WHERE was evaluated, so the lock_timeout that WHERE sets applies to that lock.
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
) END, {durable}
""".replace("{durable}", DURABLE).replace("{is_next}", IS_NEXT)

# Remove rows that were unused for so long that the clock is past their tokens. The token of a new
# row comes from the clock, so it is greater than every token of the removed row.
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

# The number of rows that PURGE would remove now, if none of them were in use.
COUNT_IDLE = """
SELECT count(*)
FROM django_dblock_fencedlock
WHERE expires_at + lock_delay < clock_timestamp() - %(idle)s * interval '1 second'
    AND token < floor(
        extract(epoch FROM clock_timestamp() - %(idle)s * interval '1 second') * 1000
    )::bigint
"""

# The schema, quoted, of the lock table that the search path leads to now.
SCHEMA = "SELECT (pg_identify_object(1259, 'django_dblock_fencedlock'::regclass, 0)).schema"

# Whether a server that refused to write is a standby.
IS_STANDBY = "SELECT pg_is_in_recovery()"

# The queue of waiters: a place in it, staying in it, leaving it. A crash that
# loses a ticket only costs its owner the place, so these commits do not wait for the disk. After a
# failover or a restore the sequence may repeat an id, so a ticket is known by its name and owner as
# well.
TAKE_TICKET = """
INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)
VALUES (
    %(name)s, %(slot)s, %(owner)s, clock_timestamp() + %(patience)s * interval '1 second'
)
RETURNING id, tableoid::text || '.' || id::text, {unawaited}
""".replace("{unawaited}", UNAWAITED)

# Extend the waiter's ticket, mark the lease as awaited, and read both. The mark is written at most
# once in half of its time, however many waiters there are. If a release has locked the row, the
# statement waits for the release and then reads the released row. So either the release sees the
# mark, or the waiter sees the release. Rows are marked in the order of slots, so that two waiters
# never deadlock.
# Semaphores and read-write locks have several rows. Counted are the held rows below `scope`, which
# are the slots that this waiter can use. The last columns describe the lease that ends first, a
# held lease if there is one. A ticket's slot is 1 - units, so a reader of a read-write lock (slot
# 1) counts as no unit. A waiter that has to wait for readers in front passes a `least` of 1.
STAY = """
WITH shown AS (
    UPDATE django_dblock_fencedticket
    SET expires_at = clock_timestamp() + %(patience)s * interval '1 second'
    WHERE id = %(ticket)s AND name = %(name)s AND owner = %(owner)s
    RETURNING {unawaited}
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
        lease.owner, lease.tableoid
), seen AS (
    SELECT * FROM marked
    UNION ALL
    SELECT id, slot, expires_at + lock_delay, token, owner, tableoid
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
    seen.owner,
    (pg_identify_object(1259, seen.tableoid, 0)).schema
FROM (SELECT) AS always
LEFT JOIN seen ON true
ORDER BY seen.ends <= clock_timestamp(), seen.ends
LIMIT 1
""".replace("{unawaited}", UNAWAITED)

# Read the lease and the queue, for a waiter that can't be woken, between two STAYs. Writes nothing.
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
    seen.owner,
    (pg_identify_object(1259, seen.tableoid, 0)).schema
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
    RETURNING {unawaited}
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
""".replace("{unawaited}", UNAWAITED).replace("{is_next}", IS_NEXT)

# Waiters that died left their tickets behind.
PURGE_TICKETS = "DELETE FROM django_dblock_fencedticket WHERE expires_at < clock_timestamp()"
