"""The statements of the helpers for tests. PostgreSQL manual: 53.13 "pg_locks"."""

# The backends that have the lock of one number, or wait for it: whether it is had, and shared.
BACKENDS = """
SELECT pid, granted, mode = 'ShareLock'
FROM pg_locks
WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint, objid::bigint, objsubid) = (%(classid)s, %(objid)s, 1)
ORDER BY granted DESC, waitstart, pid
"""
