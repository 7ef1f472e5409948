"""The statements that show what is locked.

PostgreSQL manual: 53.13 "pg_locks", 27.2.3 "pg_stat_activity", 9.27 "pg_blocking_pids()".
"""

# All advisory locks of this database, held and waited for, with who holds or waits.
# In the order of AdvisoryLock's fields, because there may be ten thousand rows; its name is made
# from the application_name. A prepared transaction's locks have no pid. pg_blocking_pids() takes
# every lock partition for a moment, so it is asked only about those who wait.
ADVISORY_LOCKS = """
SELECT
    CASE locks.objsubid WHEN 1 THEN locks.classid::bigint << 32 | locks.objid::bigint END,
    locks.classid::bigint,
    locks.objid::bigint,
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
    activity.query,
    coalesce(activity.query = '<insufficient privilege>', false),
    activity.backend_start
FROM pg_locks AS locks
LEFT JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
WHERE locks.locktype = 'advisory'
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY locks.classid, locks.objid, locks.objsubid, locks.granted DESC, locks.waitstart, locks.pid
"""

# The leases as they are by the server's clock, read once for all; those that are over come last.
# The metadata travels as text, because what comes of jsonb depends on who set up the connection.
FENCED_LEASES = """
SELECT
    lease.name,
    lease.slot,
    CASE
        WHEN lease.expires_at > clock.now THEN 'held'
        WHEN lease.expires_at + lease.lock_delay > clock.now THEN 'delayed'
        ELSE 'expired'
    END,
    lease.token,
    lease.owner,
    extract(epoch FROM clock.now - lease.acquired_at)::float8,
    extract(epoch FROM clock.now - lease.renewed_at)::float8,
    extract(epoch FROM lease.expires_at - clock.now)::float8,
    extract(epoch FROM lease.lock_delay)::float8,
    extract(epoch FROM lease.expires_at + lease.lock_delay - clock.now)::float8,
    lease.grants,
    lease.metadata::text,
    ARRAY(
        SELECT ticket.owner::text
        FROM django_dblock_fencedticket AS ticket
        WHERE ticket.name = lease.name AND ticket.slot = lease.slot
            AND ticket.expires_at > clock.now
        ORDER BY ticket.id
    )
FROM (SELECT clock_timestamp() AS now OFFSET 0) AS clock, django_dblock_fencedlock AS lease
WHERE (%(name)s::text IS NULL OR lease.name = %(name)s::text)
    AND (%(expired)s OR lease.expires_at + lease.lock_delay > clock.now)
ORDER BY lease.expires_at + lease.lock_delay <= clock.now, lease.name, lease.slot
"""


# The statements of the helpers for tests. PostgreSQL manual: 53.13 "pg_locks".


# The backends that have the lock of one number, or wait for it: whether it is had, and shared.
BACKENDS = """
SELECT pid, granted, mode = 'ShareLock'
FROM pg_locks
WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint, objid::bigint, objsubid) = (%(classid)s, %(objid)s, 1)
ORDER BY granted DESC, waitstart, pid
"""
