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

# All leases that are held or kept from others, by name: who has each, and for how long.
# Seconds by the server's clock; a kept one has ended, but hold_at_least or its lock_delay runs.
FENCED_LOCKS = """
SELECT
    lease.name,
    lease.slot,
    lease.token,
    lease.owner,
    lease.expires_at > clock_timestamp(),
    extract(epoch FROM clock_timestamp() - lease.acquired_at)::float8,
    extract(epoch FROM clock_timestamp() - lease.renewed_at)::float8,
    extract(epoch FROM lease.expires_at - clock_timestamp())::float8,
    extract(epoch FROM lease.expires_at + lease.lock_delay - clock_timestamp())::float8,
    lease.grants,
    lease.metadata::text,
    (
        SELECT count(*) FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = lease.name AND ticket.slot = lease.slot
            AND ticket.expires_at > clock_timestamp()
    )
FROM django_dblock_fencedlock AS lease
WHERE lease.expires_at + lease.lock_delay > clock_timestamp()
ORDER BY lease.name, lease.slot
"""
