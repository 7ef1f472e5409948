"""The statements of ``dblock doctor``. Each may be sent by any role, and waits for no lock.

PostgreSQL manual: 20.3.2 "TCP Settings", 20.11 "Client Connection Defaults", 20.12 "Lock
Management", 27.2 "The Cumulative Statistics System", 53.13 "pg_locks".
"""

from django_dblock.sql.inspect import AWAITED_LATCHES

# The server's own description. First, because another engine may lack what later statements use.
VERSION = "SELECT version()"

# The session: its role, the role that signed in, whether it came by a Unix socket, whether it sees
# other roles' sessions, and which lock functions the role may not call.
SESSION = """
SELECT
    pg_is_in_recovery(),
    pg_backend_pid(),
    current_user::text,
    session_user::text,
    current_database()::text,
    extract(epoch FROM clock_timestamp())::float8,
    inet_server_addr() IS NULL,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
    ARRAY(
        SELECT function
        FROM unnest(ARRAY[
            'pg_advisory_xact_lock(bigint)',
            'pg_advisory_xact_lock_shared(bigint)',
            'pg_try_advisory_xact_lock(bigint)',
            'pg_try_advisory_xact_lock_shared(bigint)'
        ]) AS function
        WHERE NOT has_function_privilege('pg_catalog.' || function, 'EXECUTE')
    )
"""

# The settings in this session, in their base units. Settings that a server version lacks are
# missing from the result.
SETTINGS = """
SELECT name, setting
FROM pg_settings
WHERE name IN (
    'autovacuum', 'client_connection_check_interval', 'default_transaction_read_only',
    'idle_in_transaction_session_timeout', 'lock_timeout', 'max_connections',
    'max_locks_per_transaction', 'max_prepared_transactions',
    'server_version', 'server_version_num', 'statement_timeout', 'synchronous_commit',
    'tcp_keepalives_count', 'tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_user_timeout',
    'transaction_timeout'
)
"""

# How many places of the shared lock table are taken, and which backend holds the most locks. Each
# locked object takes one place, however many sessions lock it. Fast-path and predicate locks take
# no place.
LOCK_TABLE = """
WITH locks AS (
    SELECT *
    FROM pg_locks
    WHERE NOT fastpath AND mode <> 'SIReadLock'
), most AS (
    SELECT pid, count(*) AS locks FROM locks GROUP BY pid ORDER BY count(*) DESC, pid LIMIT 1
)
SELECT
    (
        SELECT count(*)
        FROM (
            SELECT DISTINCT locktype, database, relation, page, tuple, virtualxid, transactionid,
                classid, objid, objsubid
            FROM locks
        ) AS places
    ),
    most.pid,
    coalesce(most.locks, 0),
    activity.usename::text,
    activity.application_name
FROM (SELECT) AS always
LEFT JOIN most ON true
LEFT JOIN pg_stat_activity AS activity ON activity.pid = most.pid
"""

# The package's tables: whether they exist, or in which other schema a table of that name is;
# their columns; the privileges that the role lacks; whether row-level security applies; rows, dead
# rows, pages and the last vacuum.
TABLES = """
SELECT
    wanted.name,
    class.oid IS NOT NULL,
    (
        SELECT namespace.nspname::text
        FROM pg_class AS other
        JOIN pg_namespace AS namespace ON namespace.oid = other.relnamespace
        WHERE class.oid IS NULL AND other.relname = wanted.name AND other.relkind IN ('r', 'p')
        ORDER BY namespace.nspname
        LIMIT 1
    ),
    ARRAY(
        SELECT attname::text
        FROM pg_attribute
        WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped
    ),
    ARRAY(
        SELECT privilege
        FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE class.oid IS NOT NULL AND NOT has_table_privilege(class.oid, privilege)
    ),
    coalesce(row_security_active(class.oid), false),
    greatest(class.reltuples::bigint, statistics.n_live_tup, 0),
    coalesce(statistics.n_dead_tup, 0),
    coalesce(class.relpages, 0),
    extract(epoch FROM clock_timestamp() - greatest(
        statistics.last_vacuum, statistics.last_autovacuum
    ))::float8
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, number)
LEFT JOIN pg_class AS class ON class.oid = to_regclass(quote_ident(wanted.name))
LEFT JOIN pg_stat_all_tables AS statistics ON statistics.relid = class.oid
ORDER BY wanted.number
"""

# What keeps dead rows from being removed, the oldest first: transactions of this database,
# standbys, prepared transactions and replication slots. The server may hide the times and states
# of other roles' transactions, but never their ages in transactions.
PINS = """
SELECT kind, name, xids, seconds, detail
FROM (
    SELECT
        'backend' AS kind,
        pid::text AS name,
        greatest(age(backend_xmin), age(backend_xid)) AS xids,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
        concat_ws(', ', 'role ' || usename, nullif(application_name, ''), state) AS detail
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid()
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        AND (datname IS NULL OR datname = current_database())
        AND backend_type IS DISTINCT FROM 'autovacuum worker'
    UNION ALL
    SELECT
        'prepared',
        gid,
        age(transaction),
        extract(epoch FROM clock_timestamp() - prepared)::float8,
        'role ' || owner
    FROM pg_prepared_xacts
    WHERE database = current_database()
    UNION ALL
    SELECT
        'slot',
        slot_name,
        age(xmin),
        NULL,
        CASE WHEN active THEN 'in use' ELSE 'inactive' END
    FROM pg_replication_slots
    WHERE xmin IS NOT NULL
) AS pins
ORDER BY xids DESC, seconds DESC NULLS LAST
LIMIT 5
"""

# The isolation level of a transaction of this alias.
ISOLATION = "SELECT current_setting('transaction_isolation')"

# The backend that serves this client now.
BACKEND = "SELECT pg_backend_pid()"

# The doctor waits for nobody who has locked one of our tables, and reads none for minutes.
PATIENCE = """
SELECT set_config('lock_timeout', '100ms', true), set_config('statement_timeout', '5s', true)
"""

# Work that leases coordinate and that nobody does, the longest first. One pass over the leases.
# 'partitions': some have had no owner for twice the ttl of their workers, although workers live; a
# partition that was never owned counts from when its oldest worker came. 'leader' and 'worker': the
# latest holder of the name is gone, and nobody waits to follow.
UNATTENDED = """
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), lease AS MATERIALIZED (
    SELECT
        regexp_replace(name, '~[^~]*$', '') AS key,
        substring(name FROM '[^~]*$') AS kind,
        name || ' ' || slot AS place,
        name, acquired_at, renewed_at, expires_at, metadata
    FROM django_dblock_fencedlock
    WHERE grants > 0
        AND (right(name, 10) = '~partition' OR right(name, 7) IN ('~worker', '~leader'))
), crew AS (
    SELECT
        key,
        count(*) AS workers,
        max(CASE WHEN metadata ->> 'count' ~ '^[0-9]{1,5}$'
            THEN (metadata ->> 'count')::int END) AS parts,
        max(expires_at - renewed_at) AS ttl,
        min(acquired_at) AS since
    FROM clock, lease
    WHERE kind = 'worker' AND expires_at > now
    GROUP BY key
), unowned AS (
    SELECT
        crew.key, crew.workers, crew.parts, crew.ttl,
        clock.now - greatest(crew.since, owner.expires_at) AS since
    FROM clock, crew
    CROSS JOIN LATERAL generate_series(0, crew.parts - 1) AS part (number)
    LEFT JOIN lease AS owner ON owner.place = crew.key || '~partition ' || part.number
    WHERE owner.expires_at IS NULL OR owner.expires_at <= clock.now
), found AS (
    SELECT
        'partitions' AS what, key, max(since) AS since, count(*) AS unowned,
        max(parts) AS parts, max(workers) AS workers
    FROM unowned
    WHERE since > 2 * ttl
    GROUP BY key
    UNION ALL
    SELECT kind, key, clock.now - max(expires_at), 0, 0, 0
    FROM clock, lease
    WHERE kind IN ('leader', 'worker')
    GROUP BY kind, key, name, clock.now
    HAVING max(expires_at) < clock.now - interval '5 minutes'
        AND NOT EXISTS (
            SELECT FROM django_dblock_fencedticket AS ticket
            WHERE ticket.name = lease.name AND ticket.expires_at > clock.now
        )
)
SELECT what, key, extract(epoch FROM since)::float8, unowned, parts, workers, total
FROM (
    SELECT
        *,
        row_number() OVER (PARTITION BY what = 'partitions' ORDER BY since DESC) AS place,
        count(*) OVER (PARTITION BY what = 'partitions') AS total
    FROM found
) AS ranked
WHERE place <= 5
ORDER BY what = 'partitions' DESC, place
"""

# The latches that somebody waits for, and of which no part has been done for an hour.
STALLED_LATCHES = """
SELECT latch, cardinality(waiting), parts, latest, count(*) OVER ()
FROM ({awaited}) AS awaited (latch, parts, latest, waiting)
WHERE latest > 3600
ORDER BY latest DESC
LIMIT 5
""".replace("{awaited}", AWAITED_LATCHES)

# The jobs of once_per whose run has ended without a result an hour ago or more; and of each job
# with a known period, the latest finished run. A job's key is its name, period and label, '#' and
# 40 digits. A label has digits and few letters: trimming takes them off much faster than a regular
# expression. Only the newest requests are read: a job whose latest run is not among them is not
# judged.
JOBS = """
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), stuck AS (
    SELECT
        regexp_replace(key, '#[^#]*$', '') AS job,
        clock.now - coalesce(locked_until, created_at) AS since
    FROM clock, (
        SELECT scope, key, locked_until, created_at, expires_at
        FROM django_dblock_idempotencykey
        WHERE completed_at IS NULL
        LIMIT 10000
    ) AS unfinished
    WHERE scope = 'once' AND starts_with(key, 'once_per:') AND strpos(key, '#') > 0
        AND coalesce(locked_until, created_at) < clock.now - interval '1 hour'
        AND (expires_at IS NULL OR expires_at > clock.now)
), latest AS (
    SELECT rtrim(left(key, -41), '0123456789TW:-') AS job, max(completed_at) AS finished
    FROM django_dblock_idempotencykey
    WHERE id > (SELECT max(id) - 100000 FROM django_dblock_idempotencykey)
        AND scope = 'once' AND starts_with(key, 'once_per:') AND strpos(key, '#') > 0
        AND completed_at IS NOT NULL
    GROUP BY 1
)
(
    SELECT 'stuck', job, extract(epoch FROM since)::float8, count(*) OVER ()
    FROM stuck
    ORDER BY since DESC
    LIMIT 5
)
UNION ALL
(
    SELECT 'latest', job, extract(epoch FROM clock.now - finished)::float8, 0
    FROM clock, latest
    WHERE right(job, 4) IN (':day', 'week', 'onth', 'hour', ' min', 'ours')
    ORDER BY finished
    LIMIT 1000
)
"""


# The statements of the system checks.


# The engine, whether it is a standby, and its default isolation level.
SERVER = "SELECT version(), pg_is_in_recovery(), current_setting('default_transaction_isolation')"

# The tables that unqualified names do not lead to.
MISSING_TABLES = """
SELECT name
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, number)
WHERE to_regclass(quote_ident(name)) IS NULL
ORDER BY number
"""
