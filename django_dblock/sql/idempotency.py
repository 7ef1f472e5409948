"""The statements of idempotent requests; :mod:`django_dblock.idempotency` states the protocol.

PostgreSQL manual: 13.2.1 "Read Committed Isolation Level"; "INSERT, ON CONFLICT Clause".

Common to all:

- A statement that reads or writes the row in order to run the request is sent while the advisory
  lock on (namespace, scope, key) is held. An earlier statement took that lock, so this one sees
  what the last holder committed.
- Time is ``clock_timestamp()``.
- The identity of a claim is ``claim``, a random UUID that the server makes. ``id`` only leads to
  the row: after an asynchronous failover or a restore, its sequence returns the same number again.
  ``token`` orders the claims of one key. It is never behind the clock, so a row that was lost and
  made again doesn't repeat a token; a server whose clock is behind still can.
- A retry relies on what is written here, so each commit waits for the disk, whatever
  ``synchronous_commit`` the session has; 19.5.1 "synchronous_commit".
- Results are text, because several statements may travel in one message.
- Next to the database, parsing a statement takes as long as running it. So a function call or an
  operator stands only where a parameter or Python can't take its place.
"""

from django_dblock.sql.commits import DURABLE

# The row of the request. No CASE, no subquery and no arithmetic: parsing and planning them takes
# longer than the rest of the statement, so Python derives the state from times that the server has
# compared. Columns with bytes are sent unencoded: encoding would take the server longer than
# Python.
READ = """
SELECT
    id,
    token,
    claim,
    completed_at,
    expires_at <= clock_timestamp(),
    locked_until > clock_timestamp(),
    fingerprint,
    fingerprint_version,
    status_code,
    headers,
    body,
    body_kind
FROM django_dblock_idempotencykey
WHERE namespace = %(namespace)s AND scope = %(scope)s AND key = %(key)s
"""

# The same, and the seconds until the lease of an unfinished request ends.
READ_WITH_REMAINING = READ.replace(
    "body_kind\n", "body_kind,\n    extract(epoch FROM locked_until - clock_timestamp())\n"
)

# Whether the scope has as many live keys as allowed. A row that exists belongs to a replay or to a
# conflict, neither of which adds a key, so nothing is counted for it. An index can't be searched
# for a volatile clock_timestamp(), hence statement_timestamp(). Each branch reads max_keys index
# entries at most, however many expired rows the scope has.
IS_FULL = """
SELECT CASE WHEN EXISTS (
    SELECT
    FROM django_dblock_idempotencykey
    WHERE namespace = %(namespace)s AND scope = %(scope)s AND key = %(key)s
        AND coalesce(expires_at > statement_timestamp(), true)
) THEN 'false' ELSE (
    SELECT (count(*) >= %(max_keys)s)::text
    FROM (
        (
            SELECT
            FROM django_dblock_idempotencykey
            WHERE namespace || '/' || scope = %(namespace)s::text || '/' || %(scope)s::text
                AND expires_at > statement_timestamp()
            LIMIT %(max_keys)s
        )
        UNION ALL
        (
            SELECT
            FROM django_dblock_idempotencykey
            WHERE namespace || '/' || scope = %(namespace)s::text || '/' || %(scope)s::text
                AND expires_at IS NULL
            LIMIT %(max_keys)s
        )
    ) AS live
) END
"""

# The savepoint to which the view's effects are rolled back if only its response is stored.
SAVEPOINT = "SAVEPOINT {name}"
RELEASE = "RELEASE SAVEPOINT {name}"

# The response, if no row was read. COMMIT may travel with this statement, so a row that was written
# without the lock is an error of the server, which keeps COMMIT from being run.
RECORD_AND_COMMIT = """
INSERT INTO django_dblock_idempotencykey (
    namespace, scope, key, fingerprint, fingerprint_version, method, path, status_code, headers,
    body, body_kind, token, owner, steps, created_at, completed_at, expires_at
)
VALUES (
    %(namespace)s, %(scope)s, %(key)s, %(fingerprint)s, %(fingerprint_version)s,
    %(method)s, %(path)s, %(status_code)s, %(headers)s::jsonb, %(body)s,
    %(body_kind)s, 1, '', '{}', transaction_timestamp(), clock_timestamp(),
    clock_timestamp() + %(ttl)s::float8 * interval '1 second'
)
RETURNING {durable}
""".replace("{durable}", DURABLE)

# The response in a transaction that the caller has opened. There, a row that was written without
# the lock must not abort the transaction: then the statement returns no row.
RECORD_NEW = RECORD_AND_COMMIT.replace(
    "RETURNING", "ON CONFLICT (namespace, scope, key) DO NOTHING\nRETURNING"
)

# The response, if an expired row was read, which may be purged by now. The row was read under the
# lock. If the row is not expired any more, it was written without the lock, and the statement
# returns no row.
RECORD_AGAIN = """
INSERT INTO django_dblock_idempotencykey AS request (
    namespace, scope, key, fingerprint, fingerprint_version, method, path, status_code, headers,
    body, body_kind, token, owner, steps, created_at, completed_at, expires_at
)
VALUES (
    %(namespace)s, %(scope)s, %(key)s, %(fingerprint)s, %(fingerprint_version)s,
    %(method)s, %(path)s, %(status_code)s, %(headers)s::jsonb, %(body)s,
    %(body_kind)s, 1, '', '{}', transaction_timestamp(), clock_timestamp(),
    clock_timestamp() + %(ttl)s::float8 * interval '1 second'
)
ON CONFLICT (namespace, scope, key) DO UPDATE SET
    fingerprint = excluded.fingerprint,
    fingerprint_version = excluded.fingerprint_version,
    method = excluded.method,
    path = excluded.path,
    status_code = excluded.status_code,
    headers = excluded.headers,
    body = excluded.body,
    body_kind = excluded.body_kind,
    token = GREATEST(
        request.token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
    ),
    claim = NULL,
    owner = '',
    locked_until = NULL,
    steps = '{}',
    created_at = excluded.created_at,
    completed_at = excluded.completed_at,
    expires_at = excluded.expires_at
WHERE request.expires_at <= clock_timestamp()
    AND (request.completed_at IS NOT NULL
        OR coalesce(request.locked_until, '-infinity') <= clock_timestamp())
RETURNING id::text, {durable}
""".replace("{durable}", DURABLE)

# A claim on a request that has no row.
CLAIM_NEW = """
INSERT INTO django_dblock_idempotencykey (
    namespace, scope, key, fingerprint, fingerprint_version, method, path, headers, body_kind,
    token, claim, owner, locked_until, steps, created_at, expires_at
)
VALUES (
    %(namespace)s, %(scope)s, %(key)s, %(fingerprint)s, %(fingerprint_version)s,
    %(method)s, %(path)s, '{}', 'plain',
    floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, gen_random_uuid(), %(owner)s,
    clock_timestamp() + %(lease)s::float8 * interval '1 second', '{}', clock_timestamp(),
    clock_timestamp() + %(ttl)s::float8 * interval '1 second'
)
ON CONFLICT (namespace, scope, key) DO NOTHING
RETURNING id::text, token::text, claim::text, steps::text, {durable}
""".replace("{durable}", DURABLE)

# A claim on a request that has a row: the greater token fences the last holder off. An expired
# request starts from the beginning; an unfinished one continues after its last step. While a
# transaction of the last holder is open, the row is locked, and this statement skips it. A run
# completes its request without the advisory lock, so a request that was read as unfinished may have
# its response by now. That response stays.
CLAIM_AGAIN = """
UPDATE django_dblock_idempotencykey SET
    fingerprint = %(fingerprint)s,
    fingerprint_version = %(fingerprint_version)s,
    method = %(method)s,
    path = %(path)s,
    status_code = NULL,
    headers = '{}',
    body = NULL,
    body_kind = 'plain',
    token = GREATEST(token + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    claim = gen_random_uuid(),
    owner = %(owner)s,
    locked_until = clock_timestamp() + %(lease)s::float8 * interval '1 second',
    steps = CASE WHEN %(resume)s = 1 THEN steps ELSE '{}' END,
    created_at = CASE WHEN %(resume)s = 1 THEN created_at ELSE clock_timestamp() END,
    completed_at = NULL,
    expires_at = clock_timestamp() + %(ttl)s::float8 * interval '1 second'
WHERE id = (
    SELECT id
    FROM django_dblock_idempotencykey
    WHERE id = %(id)s::bigint AND token = %(token)s::bigint
        AND claim IS NOT DISTINCT FROM %(claim)s::uuid
        AND namespace = %(namespace)s AND scope = %(scope)s AND key = %(key)s
        AND (completed_at IS NULL AND coalesce(locked_until, '-infinity') <= clock_timestamp()
            OR completed_at IS NOT NULL AND expires_at <= clock_timestamp())
    FOR UPDATE SKIP LOCKED
)
RETURNING id::text, token::text, claim::text, steps::text, {durable}
""".replace("{durable}", DURABLE)

# A recovery point, which renews the lease, too. While the claim is valid, no other run holds the
# request, even if the lease has run out.
STEP = """
UPDATE django_dblock_idempotencykey SET
    steps = steps || %(step)s::jsonb,
    locked_until = clock_timestamp() + %(lease)s::float8 * interval '1 second'
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NULL
RETURNING id::text, {durable}
""".replace("{durable}", DURABLE)

# Keep other runs from taking the request over before this transaction ends.
GUARD = """
SELECT id::text
FROM django_dblock_idempotencykey
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NULL
FOR NO KEY UPDATE
"""

# The response, in the transaction of the effects or in one of its own.
COMPLETE = """
UPDATE django_dblock_idempotencykey SET
    status_code = %(status_code)s,
    headers = %(headers)s::jsonb,
    body = %(body)s,
    body_kind = %(body_kind)s,
    locked_until = NULL,
    completed_at = clock_timestamp(),
    expires_at = clock_timestamp() + %(ttl)s::float8 * interval '1 second'
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NULL
RETURNING id::text, {durable}
""".replace("{durable}", DURABLE)

# Whether the stored response is the claim's own.
IS_COMPLETED = """
SELECT id::text
FROM django_dblock_idempotencykey
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NOT NULL
"""

# Whether the claim holds, and the step is recorded.
HAS_STEP = """
SELECT id::text
FROM django_dblock_idempotencykey
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND steps ? %(name)s
"""

# The run has ended without a response to store: the next retry may run at once, after the last
# recorded step. FREE keeps the row and its fingerprint, for a key that another system may know.
# GIVE_UP removes a row without a recorded step, because the row has nothing to remember.
# FREE gives a row without a recorded step a retention, which on_abandoned="refuse" leaves open.
FREE = """
UPDATE django_dblock_idempotencykey SET
    locked_until = NULL,
    expires_at = CASE
        WHEN steps = '{}'
        THEN coalesce(expires_at, clock_timestamp() + %(ttl)s::float8 * interval '1 second')
        ELSE expires_at
    END
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NULL
RETURNING id::text
"""
GIVE_UP = """
WITH gone AS (
    DELETE FROM django_dblock_idempotencykey
    WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
        AND completed_at IS NULL AND steps = '{}'
)
UPDATE django_dblock_idempotencykey SET locked_until = NULL
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NULL AND steps <> '{}'
RETURNING id::text
"""

# The run has ended in the middle of a step, and it is unknown whether the step had its effect.
ABANDON = """
UPDATE django_dblock_idempotencykey SET locked_until = clock_timestamp()
WHERE id = %(id)s::bigint AND token = %(token)s::bigint AND claim = %(claim)s::uuid
    AND completed_at IS NULL
RETURNING id::text
"""

# A commit of this response was not confirmed by a synchronous standby. A completed request needs no
# locked_until, so the column marks that. The mark does not wait for a standby either.
MARK_UNCONFIRMED = """
UPDATE django_dblock_idempotencykey SET locked_until = completed_at
WHERE namespace = %(namespace)s AND scope = %(scope)s AND key = %(key)s
    AND completed_at IS NOT NULL
RETURNING set_config('synchronous_commit', 'local', true)
"""

# Sent before such a response is replayed: the commit of this write waits for a standby, which then
# has all earlier writes, too.
CONFIRM = """
UPDATE django_dblock_idempotencykey SET locked_until = NULL
WHERE namespace = %(namespace)s AND scope = %(scope)s AND key = %(key)s
    AND completed_at IS NOT NULL
RETURNING {durable}
""".replace("{durable}", DURABLE)
