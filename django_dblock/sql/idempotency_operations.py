"""The statements of operators: list the requests that have not ended, and resolve a request.

PostgreSQL manual: 13.2.1 "Read Committed Isolation Level", 9.9.5 "Current Date/Time".
"""

from django_dblock.sql.commits import DURABLE, UNAWAITED

# The requests that have no response yet: first the requests without a worker, the longest idle in
# front. Each state is a range of the partial index on locked_until, and only a limited number of
# its rows are read; finished requests cost nothing. The last two columns count the requests without
# a worker and with a worker, up to %(most)s each. Results of steps may be private: only their names
# are shown.
UNFINISHED = """
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), counted AS MATERIALIZED (
    SELECT
        (
            SELECT count(*) FROM (
                SELECT FROM django_dblock_idempotencykey
                WHERE completed_at IS NULL AND locked_until IS NULL
                LIMIT %(most)s::bigint
            ) AS free
        ) + (
            SELECT count(*) FROM (
                SELECT FROM django_dblock_idempotencykey
                WHERE completed_at IS NULL AND locked_until <= (SELECT now FROM clock)
                LIMIT %(most)s::bigint
            ) AS abandoned
        ) AS idle,
        (
            SELECT count(*) FROM (
                SELECT FROM django_dblock_idempotencykey
                WHERE completed_at IS NULL AND locked_until > (SELECT now FROM clock)
                LIMIT %(most)s::bigint
            ) AS leased
        ) AS leased
    WHERE %(id)s::bigint IS NULL
), request AS (
    (
        SELECT 'free' AS state, 1 AS rank, free.*
        FROM django_dblock_idempotencykey AS free
        WHERE completed_at IS NULL AND locked_until IS NULL
            AND (%(id)s::bigint IS NULL OR id = %(id)s::bigint)
        ORDER BY locked_until
        LIMIT %(limit)s::bigint
    )
    UNION ALL
    (
        SELECT 'abandoned', 2, abandoned.*
        FROM django_dblock_idempotencykey AS abandoned
        WHERE completed_at IS NULL AND locked_until <= (SELECT now FROM clock)
            AND (%(id)s::bigint IS NULL OR id = %(id)s::bigint)
        ORDER BY locked_until
        LIMIT %(limit)s::bigint
    )
    UNION ALL
    (
        SELECT 'leased', 3, leased.*
        FROM django_dblock_idempotencykey AS leased
        WHERE completed_at IS NULL AND locked_until > (SELECT now FROM clock)
            AND (%(id)s::bigint IS NULL OR id = %(id)s::bigint)
        ORDER BY locked_until
        LIMIT %(limit)s::bigint
    )
)
SELECT
    request.id,
    request.state,
    request.scope,
    request.key,
    request.method,
    request.path,
    request.owner,
    request.token,
    extract(epoch FROM clock.now - request.created_at)::float8,
    extract(epoch FROM request.locked_until - clock.now)::float8,
    extract(epoch FROM request.expires_at - clock.now)::float8,
    request.namespace,
    ARRAY(SELECT jsonb_object_keys(request.steps)),
    counted.idle,
    counted.leased
FROM request
CROSS JOIN clock
LEFT JOIN counted ON true
ORDER BY request.rank, request.locked_until, request.id
"""

# How many requests have no response yet, by state: by the partial index alone.
COUNT_UNFINISHED = """
SELECT
    CASE
        WHEN request.locked_until > clock.now THEN 'leased'
        WHEN request.locked_until IS NULL THEN 'free'
        ELSE 'abandoned'
    END,
    count(*)
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS clock, django_dblock_idempotencykey AS request
WHERE request.completed_at IS NULL
GROUP BY 1
"""

# What is to be resolved, and whether it may be.
RESOLVABLE = """
SELECT
    scope,
    key,
    token,
    claim,
    owner,
    method,
    completed_at IS NOT NULL,
    ceil(extract(epoch FROM locked_until - clock_timestamp()))::bigint
FROM django_dblock_idempotencykey
WHERE id = %(id)s
"""

# An operator frees a request: the next repetition continues after its last step. The token is
# advanced and the claim removed, so the last holder can neither record nor commit under a guard.
# The retention counts from now. If another run has taken the request over since the row was read,
# the token differs or the lease runs, and the statement returns no row. The commit is durable as
# that of a claim: a crash would bring the old token and the old claim back.
RETRY = """
UPDATE django_dblock_idempotencykey
SET token = GREATEST(token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    claim = NULL,
    locked_until = NULL,
    expires_at = clock_timestamp() + %(ttl)s * interval '1 second'
WHERE id = %(id)s AND token = %(token)s AND claim IS NOT DISTINCT FROM %(claim)s::uuid
    AND completed_at IS NULL
    AND (locked_until IS NULL OR locked_until <= clock_timestamp())
RETURNING id, {durable}
""".replace("{durable}", DURABLE)

# An operator records the response of a request, under the same conditions.
ANSWER = """
UPDATE django_dblock_idempotencykey
SET token = GREATEST(token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    claim = NULL,
    status_code = %(status_code)s,
    headers = %(headers)s::jsonb,
    body = %(body)s,
    body_kind = %(body_kind)s,
    locked_until = NULL,
    completed_at = clock_timestamp(),
    expires_at = clock_timestamp() + %(ttl)s * interval '1 second'
WHERE id = %(id)s AND token = %(token)s AND claim IS NOT DISTINCT FROM %(claim)s::uuid
    AND completed_at IS NULL
    AND (locked_until IS NULL OR locked_until <= clock_timestamp())
RETURNING id, {durable}
""".replace("{durable}", DURABLE)

# No synchronous standby has confirmed the commit of that response; as MARK_UNCONFIRMED in
# django_dblock.sql.idempotency. A request that was freed has no response, and needs no mark: the
# commit of the next claim waits for a standby, which then has all earlier writes, too.
MARK_UNCONFIRMED = """
UPDATE django_dblock_idempotencykey SET locked_until = completed_at
WHERE id = %(id)s AND completed_at IS NOT NULL
RETURNING set_config('synchronous_commit', 'local', true)
"""


# The statements of :func:`django_dblock.purge_idempotency_keys`.
#
# PostgreSQL manual: "SELECT, The Locking Clause", 11.4 "Indexes and ORDER BY", 24.1.2 "Recovering
# Disk Space".
#
# The time comes as a parameter, read once per purge: an index can't be searched for
# ``clock_timestamp()``, and keys that expire meanwhile are for the next purge. It travels as text,
# because what comes of it in Python depends on USE_TZ.


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
SELECT count(*), max(expires_at)::text, {unawaited}
FROM removed
""".replace("{unawaited}", UNAWAITED)

# How many rows PURGE would remove now, were none of them locked.
COUNT_EXPIRED = """
SELECT count(*)
FROM django_dblock_idempotencykey
WHERE expires_at <= %(now)s::timestamptz
    AND (completed_at IS NOT NULL OR locked_until IS NULL
        OR (%(abandoned)s AND locked_until <= %(now)s::timestamptz))
"""
