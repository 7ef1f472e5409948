"""The statements that show what is locked.

PostgreSQL manual: 53.13 "pg_locks", 27.2.3 "pg_stat_activity", 9.27 "pg_blocking_pids()".
"""

# All advisory locks of this database, held and waited for, with who holds or waits.
# A prepared transaction's locks have no pid. pg_blocking_pids() takes every lock partition for a
# moment, so it is asked only about those who wait.
ADVISORY_LOCKS = """
SELECT
    locks.classid::bigint,
    locks.objid::bigint,
    locks.objsubid,
    locks.mode = 'ShareLock',
    locks.granted,
    locks.pid,
    CASE WHEN locks.granted THEN '{}' ELSE pg_blocking_pids(locks.pid) END,
    extract(epoch FROM clock_timestamp() - locks.waitstart)::float8,
    extract(epoch FROM clock_timestamp() - activity.xact_start)::float8,
    activity.application_name,
    activity.usename::text,
    host(activity.client_addr),
    activity.state,
    activity.query
FROM pg_locks AS locks
LEFT JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
WHERE locks.locktype = 'advisory'
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY locks.classid, locks.objid, locks.objsubid, locks.granted DESC, locks.waitstart, locks.pid
"""
