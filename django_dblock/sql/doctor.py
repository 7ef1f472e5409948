"""The statements of ``dblock doctor``. Each may be sent by any role, and waits for no lock.

PostgreSQL manual: 20.3.2 "TCP Settings", 20.11 "Client Connection Defaults", 20.12 "Lock
Management", 27.2 "The Cumulative Statistics System", 53.13 "pg_locks".
"""

# The server's own description. First, because another engine may lack what later statements use.
VERSION = "SELECT version()"

# The session: its role, whether it came by a Unix socket, whether it sees other roles' sessions,
# and which lock functions the role may not call.
SESSION = """
SELECT
    pg_is_in_recovery(),
    pg_backend_pid(),
    current_user::text,
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
    'autovacuum', 'client_connection_check_interval', 'idle_in_transaction_session_timeout',
    'lock_timeout', 'max_connections', 'max_locks_per_transaction', 'max_prepared_transactions',
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
# their columns; the privileges that the role lacks; rows, dead rows, pages and the last vacuum.
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
