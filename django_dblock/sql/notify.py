"""The statements of waking: LISTEN and NOTIFY on one channel for the whole package.

PostgreSQL manual: "LISTEN", "NOTIFY", 32.9 "Asynchronous Notification" (libpq).
"""

# One channel, because each LISTEN is a transaction and a process waits for few things at a time.
# Who is meant stands in the payload.
LISTEN = "LISTEN django_dblock"
NOTIFY = "SELECT pg_notify('django_dblock', %(topic)s)"

# The process number that the server itself knows this session by. A pooler tells its clients
# another one, and loses what was listened to.
BACKEND_PID = "SELECT pg_backend_pid() AS pid"
