"""The statement that ends somebody's connection.

PostgreSQL manual: 9.28.2 "Server Signaling Functions", 27.2.25 "Statistics Functions", 27.2.2
"Viewing Statistics" (a transaction keeps the picture that it looked at first).
"""

# End a backend, if it is still the one that was seen, and still has to do with a lock of this
# database. Numbers of processes are used again, so the picture that an open transaction keeps of
# the backends is thrown away first, which is why the number is made to depend on that.
# The last column is null where nothing was ended: who asks may not see when the backend began.
TERMINATE = """
SELECT
    backend.pid,
    pg_get_userbyid(backend.usesysid)::text,
    backend.application_name,
    backend.backend_start,
    CASE
        WHEN %(backend_start)s::timestamptz IS NULL OR backend.backend_start IS NOT NULL
            THEN pg_terminate_backend(backend.pid)
    END
FROM (SELECT length(pg_stat_clear_snapshot()::text) OFFSET 0) AS fresh (zero)
CROSS JOIN LATERAL pg_stat_get_activity(%(pid)s::int + fresh.zero) AS backend
WHERE backend.pid <> pg_backend_pid()
    AND coalesce(backend.backend_start = %(backend_start)s::timestamptz, true)
    AND EXISTS (
        SELECT
        FROM pg_locks AS locks
        WHERE locks.pid = backend.pid
            AND locks.locktype = 'advisory'
            AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
"""
