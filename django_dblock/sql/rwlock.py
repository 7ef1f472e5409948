"""The statements of the read-write lock.

Slot 0 is the gate, the writer's lease. Slots 1, 2, … are the readers' leases. Renewals, guards and
forced releases are the statements in :mod:`django_dblock.sql.fencing`.

PostgreSQL manual: 13.3.2 "Row-Level Locks", 13.2.1 "Read Committed Isolation Level", "SELECT, The
Locking Clause", 54.2.2.1 "Multiple Statements in a Simple Query".
"""

from django_dblock.sql.commits import DURABLE, UNAWAITED
from django_dblock.sql.notify import IS_NEXT

# Several statements in one message, each with a snapshot of its own. The order matters: a statement
# that waits for the gate and then counts readers would count in the snapshot from before its wait.
# FOR NO KEY UPDATE lets one grant run at a time, and does not wait for open guards (KEY SHARE).
# A purge may delete the gate between MAKE_GATE and LOCK_GATE, and another session make the gate
# again. So LOCK_GATE returns which row it has locked, and no other row grants a lease.
# READ COMMITTED, whatever the role's default is: above it, all statements share the first snapshot.
READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
MAKE_GATE = """
INSERT INTO django_dblock_fencedlock (
    name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata
)
SELECT
    %(name)s::text, 0, 0, '',
    clock_timestamp(), clock_timestamp(), clock_timestamp(), interval '0', 0, '{}'
WHERE NOT EXISTS (SELECT FROM django_dblock_fencedlock WHERE name = %(name)s::text AND slot = 0)
ON CONFLICT (name, slot) DO NOTHING
"""
LOCK_GATE = """
SELECT
    set_config('idle_in_transaction_session_timeout', '10000', true),
    set_config('django_dblock.gate', id::text, true)
FROM django_dblock_fencedlock
WHERE name = %(name)s::text AND slot = 0
FOR NO KEY UPDATE
"""

# A reader needs the gate free: no writer, no open guard of an ended writer (SKIP LOCKED skips such
# a gate), and no writer's ticket (slot 0) in front of the reader's ticket. The reader's token is
# greater than the last writer's token.
# The last writer may be frozen, or inside a statement that judged its lease before the lease ended,
# and is about to lock the gate. The server judges a row again only if the row was written since. So
# the first reader after a writer advances the gate's token, and the gate then has no holder.
ACQUIRE_READ = """
WITH gate AS MATERIALIZED (
    SELECT id, token
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot = 0
        AND id::text = current_setting('django_dblock.gate', true)
        AND expires_at + lock_delay <= clock_timestamp()
        AND NOT EXISTS (
            SELECT FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = %(name)s::text AND ticket.slot = 0
                AND ticket.expires_at > clock_timestamp()
                AND ticket.id < coalesce(%(ticket)s, 9223372036854775807)
        )
    FOR UPDATE SKIP LOCKED
), {reader}, passed AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = lease.token + 1, owner = ''
    FROM gate
    WHERE lease.id = gate.id AND lease.owner <> ''
), left_queue AS (
    DELETE FROM django_dblock_fencedticket
    WHERE id = %(ticket)s AND name = %(name)s::text AND EXISTS (SELECT FROM had)
)
SELECT
    'acquired', slot, token, expires_at, NULL::float8,
    (pg_identify_object(1259, tableoid, 0)).schema, NULL::bigint,
    {durable}
FROM had
UNION ALL
SELECT
    'held', slot, token, expires_at,
    extract(epoch FROM expires_at + lock_delay - clock_timestamp())::float8, owner, 1, NULL
FROM django_dblock_fencedlock
WHERE name = %(name)s::text AND slot = 0 AND expires_at + lock_delay > clock_timestamp()
    AND NOT EXISTS (SELECT FROM had)
""".replace("{durable}", DURABLE)

# The reader's row: the lowest free row, or a new row. Only a session that has locked the gate's row
# makes rows, so two sessions never make the same row.
_READER = """
free AS MATERIALIZED (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot > 0 AND expires_at + lock_delay <= clock_timestamp()
        AND EXISTS (SELECT FROM gate)
    ORDER BY slot
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = GREATEST(
            lease.token + 1, (SELECT token + 2 FROM gate),
            floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
        ),
        owner = %(owner)s::text,
        acquired_at = clock_timestamp(),
        renewed_at = clock_timestamp(),
        expires_at = clock_timestamp() + %(ttl)s * interval '1 second',
        lock_delay = %(lock_delay)s * interval '1 second',
        grants = lease.grants + 1,
        metadata = %(metadata)s::jsonb
    FROM free
    WHERE lease.id = free.id
    RETURNING lease.slot, lease.token, lease.expires_at, lease.tableoid
), made AS (
    INSERT INTO django_dblock_fencedlock (
        name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata
    )
    SELECT
        %(name)s::text,
        (SELECT max(slot) + 1 FROM django_dblock_fencedlock WHERE name = %(name)s::text),
        GREATEST(gate.token + 2, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
        %(owner)s::text, clock_timestamp(), clock_timestamp(),
        clock_timestamp() + %(ttl)s * interval '1 second',
        %(lock_delay)s * interval '1 second', 1, %(metadata)s::jsonb
    FROM gate
    WHERE NOT EXISTS (SELECT FROM free)
    RETURNING slot, token, expires_at, tableoid
), had AS (
    SELECT slot, token, expires_at, tableoid FROM taken
    UNION ALL
    SELECT slot, token, expires_at, tableoid FROM made
)
"""
ACQUIRE_READ = ACQUIRE_READ.replace("{reader}", _READER.strip())

# A writer needs the gate free and every reader's row lockable: no row held, and no row guarded. The
# writer's token is greater than every token that a row of this lock carries. The writer's turn
# comes when no live ticket, of a reader or a writer, is in front of the writer's ticket. Readers
# whose leases have ended may be about to lock their rows, as the last writer may. So a writer
# advances the tokens of all readers since the last writer.
ACQUIRE_WRITE = """
WITH gate AS MATERIALIZED (
    SELECT id
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot = 0
        AND id::text = current_setting('django_dblock.gate', true)
        AND expires_at + lock_delay <= clock_timestamp()
        AND NOT EXISTS (
            SELECT FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = %(name)s::text
                AND ticket.expires_at > clock_timestamp()
                AND ticket.id < coalesce(%(ticket)s, 9223372036854775807)
        )
    FOR UPDATE SKIP LOCKED
), readers AS MATERIALIZED (
    SELECT id, token
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot > 0 AND expires_at + lock_delay <= clock_timestamp()
        AND EXISTS (SELECT FROM gate)
    FOR UPDATE SKIP LOCKED
), granted AS MATERIALIZED (
    SELECT id, (SELECT coalesce(max(token), 0) FROM readers) AS newest
    FROM gate
    WHERE (SELECT count(*) FROM readers) = (
        SELECT count(*) FROM django_dblock_fencedlock WHERE name = %(name)s::text AND slot > 0
    )
), passed AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = lease.token + 1, owner = ''
    FROM readers
    WHERE lease.id = readers.id AND lease.owner <> '' AND EXISTS (SELECT FROM granted)
), taken AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = GREATEST(
            lease.token + 1, granted.newest + 2,
            floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
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
), left_queue AS (
    DELETE FROM django_dblock_fencedticket
    WHERE id = %(ticket)s AND name = %(name)s::text AND EXISTS (SELECT FROM taken)
)
SELECT
    'acquired', slot, token, expires_at, NULL::float8,
    (pg_identify_object(1259, tableoid, 0)).schema, NULL::bigint,
    {durable}
FROM taken
UNION ALL (
    SELECT
        'held', slot, token, expires_at,
        extract(epoch FROM expires_at + lock_delay - clock_timestamp())::float8,
        owner, count(*) OVER (), NULL
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND expires_at + lock_delay > clock_timestamp()
        AND NOT EXISTS (SELECT FROM taken)
    ORDER BY expires_at + lock_delay DESC
    LIMIT 1
)
""".replace("{durable}", DURABLE)

# Release a reader's or the writer's lease. If a waiter has marked the lease as awaited, the waiters
# are notified that can be granted a lease now: all readers in front of the next writer; or the next
# writer, when the last reader or a writer leaves. Another reader that is leaving at this moment
# counts as gone: SKIP LOCKED skips that reader's row, or this statement has waited for the other
# reader and sees the released row. So of two readers that leave together, the last to commit
# notifies the writer. The statement locks one more row at most, never waits while it has locked a
# row, and does not conflict with guards (KEY SHARE).
RELEASE_TURN = (
    """
WITH released AS (
    UPDATE django_dblock_fencedlock
    SET expires_at = LEAST(expires_at, clock_timestamp()),
        lock_delay = GREATEST(
            acquired_at + %(hold_at_least)s * interval '1 second'
                - LEAST(expires_at, clock_timestamp()),
            CASE WHEN %(was_lost)s THEN lock_delay ELSE interval '0' END
        )
    WHERE name = %(name)s::text AND slot = %(slot)s AND token = %(token)s
    RETURNING awaited_until > clock_timestamp() AS is_awaited,
        CASE WHEN %(hold_at_least)s <= 0 THEN {unawaited} ELSE {durable} END
), others AS MATERIALIZED (
    SELECT 1
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot <> %(slot)s
        AND expires_at + lock_delay > clock_timestamp()
        AND EXISTS (SELECT FROM released WHERE is_awaited)
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT CASE WHEN is_awaited THEN (
    SELECT count(pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text))
    FROM django_dblock_fencedticket AS ticket
    WHERE ticket.name = %(name)s::text AND {is_next}
        AND (ticket.slot > 0 OR NOT EXISTS (SELECT FROM others))
) END
FROM released
""".replace("{durable}", DURABLE)
    .replace("{unawaited}", UNAWAITED)
    .replace("{is_next}", IS_NEXT)
)

# From write to read without a gap: in one transaction, and only while the write lease is held.
# All waiting readers in front of the next writer are notified: they can read beside this reader.
# The gate keeps no lock_delay, which would keep readers out. The rest of the writer's hold_at_least
# is that of the reader's lease, which keeps writers out only.
DOWNGRADE = (
    """
WITH gate AS MATERIALIZED (
    SELECT id, token
    FROM django_dblock_fencedlock
    WHERE name = %(name)s::text AND slot = 0 AND token = %(token)s
        AND expires_at > clock_timestamp()
    FOR NO KEY UPDATE
), {reader}, closed AS (
    UPDATE django_dblock_fencedlock AS lease
    SET token = lease.token + 1,
        owner = '',
        expires_at = clock_timestamp(),
        lock_delay = interval '0'
    FROM gate
    WHERE lease.id = gate.id
    RETURNING lease.awaited_until > clock_timestamp() AS is_awaited
)
SELECT
    'acquired', slot, token, expires_at, NULL::float8,
    (pg_identify_object(1259, tableoid, 0)).schema,
    CASE WHEN EXISTS (SELECT FROM closed WHERE is_awaited) THEN (
        SELECT count(pg_notify('django_dblock', ticket.tableoid::text || '.' || ticket.id::text))
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = %(name)s::text AND ticket.slot > 0 AND {is_next}
    ) END,
    {durable}
FROM had
""".replace("{durable}", DURABLE)
    .replace("{reader}", _READER.strip())
    .replace("{is_next}", IS_NEXT)
)
