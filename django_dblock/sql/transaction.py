"""The statement that opens a transaction, for a message that begins with it."""

# As psycopg sends it for a connection without an isolation level, mode or deferrability of its own.
BEGIN = "BEGIN"
