"""The statements of :func:`django_dblock.purge_idempotency_keys`.

PostgreSQL manual: "SELECT, The Locking Clause", 11.4 "Indexes and ORDER BY", 24.1.2 "Recovering
Disk Space".

The time comes as a parameter, read once per purge: an index can't be searched for
``clock_timestamp()``, and keys that expire meanwhile are for the next purge. It travels as text,
because what comes of it in Python depends on USE_TZ.
"""

# What time it is, for the whole purge.
CLOCK = "SELECT clock_timestamp()::text"

# Remove one batch, the longest expired first. Never a live lease; a row without expires_at is not
# in the range. What somebody has locked is passed over, and who locks first is asked again whether
# the row is still what it was. The batch begins where the last one ended, at "after": else each
# would walk over the index entries of all that the purge has removed so far, which stay until
# vacuum, and while a transaction is open that is older than they are, point to rows that have to be
# looked at. MATERIALIZED: a LIMIT with a locking clause must run once.
# What a crash brings back is removed by the next purge, so the commit waits for no disk.
PURGE = """
WITH expired AS MATERIALIZED (
    SELECT id
    FROM django_dblock_idempotencykey
    WHERE expires_at >= %(after)s::timestamptz AND expires_at <= %(now)s::timestamptz
        AND (completed_at IS NOT NULL OR locked_until IS NULL
            OR (%(abandoned)s AND locked_until <= %(now)s::timestamptz))
    ORDER BY expires_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM django_dblock_idempotencykey AS request
    USING expired
    WHERE request.id = expired.id
    RETURNING request.expires_at
)
SELECT count(*), max(expires_at)::text, set_config('synchronous_commit', 'off', true)
FROM removed
"""

# How many rows PURGE would remove now, were none of them locked.
COUNT_EXPIRED = """
SELECT count(*)
FROM django_dblock_idempotencykey
WHERE expires_at <= %(now)s::timestamptz
    AND (completed_at IS NOT NULL OR locked_until IS NULL
        OR (%(abandoned)s AND locked_until <= %(now)s::timestamptz))
"""
