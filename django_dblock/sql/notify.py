"""The statements of waking: LISTEN and NOTIFY on one channel for the whole package.

PostgreSQL manual: "LISTEN", "NOTIFY", 32.9 "Asynchronous Notification" (libpq).
"""

# One channel, because each LISTEN is a transaction and a process waits for few things at a time.
# The payload names the waiter.
LISTEN = "LISTEN django_dblock"
NOTIFY = "SELECT pg_notify('django_dblock', %(topic)s)"

# The process id of this session's backend. A pooler gives its clients another id, and loses LISTEN.
BACKEND_PID = "SELECT pg_backend_pid() AS pid"

# Who is next in the queue for a name: its first waiter; in that for a read-write lock, the readers
# (slot 1) before the first writer, or the first waiter if that is a writer (slot 0). A ticket that
# goes with the statement is not in the way.
IS_NEXT = """
ticket.expires_at > clock_timestamp() AND NOT EXISTS (
    SELECT FROM django_dblock_fencedticket AS earlier
    WHERE earlier.name = ticket.name AND earlier.id < ticket.id
        AND earlier.id IS DISTINCT FROM %(ticket)s
        AND earlier.expires_at > clock_timestamp()
        AND (earlier.slot <= 0 OR ticket.slot <= 0)
)
""".strip()
