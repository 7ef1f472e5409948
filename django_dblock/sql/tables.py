"""The SQL of the migrations beyond Django's operations; it must not change, as it has been run.

PostgreSQL manual: "CREATE TABLE, Storage Parameters", 66.7 "Heap-Only Tuples (HOT)".
"""

# Half of each page stays free for the next version of a row, so that no update ever writes an
# index; and the pages are swept after a few hundred dead rows, not after a fifth of the table.
# Collation "C": names are compared byte by byte, and no upgrade of the system's locales can change
# their order under the index.
FENCEDLOCK = """
ALTER TABLE django_dblock_fencedlock
    ALTER COLUMN name TYPE varchar(255) COLLATE "C",
    SET (
        fillfactor = 50,
        autovacuum_vacuum_threshold = 200,
        autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_analyze_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.2
    )
"""
FENCEDLOCK_REVERSE = """
ALTER TABLE django_dblock_fencedlock
    ALTER COLUMN name TYPE varchar(255) COLLATE "default",
    RESET (
        fillfactor,
        autovacuum_vacuum_threshold,
        autovacuum_vacuum_scale_factor,
        autovacuum_analyze_threshold,
        autovacuum_analyze_scale_factor
    )
"""

# The queue, in the same way. It is logged, because a standby refuses to read an unlogged
# table.
FENCEDTICKET = """
ALTER TABLE django_dblock_fencedticket
    ALTER COLUMN name TYPE varchar(255) COLLATE "C",
    SET (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.02)
"""
FENCEDTICKET_REVERSE = """
ALTER TABLE django_dblock_fencedticket
    ALTER COLUMN name TYPE varchar(255) COLLATE "default",
    RESET (autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor)
"""

# Collation "C", too. Rows go in large batches, so the pages are swept after a few per cent.
IDEMPOTENCYKEY = """
ALTER TABLE django_dblock_idempotencykey
    ALTER COLUMN scope TYPE varchar(255) COLLATE "C",
    ALTER COLUMN key TYPE varchar(255) COLLATE "C",
    SET (autovacuum_vacuum_scale_factor = 0.05)
"""
IDEMPOTENCYKEY_REVERSE = """
ALTER TABLE django_dblock_idempotencykey
    ALTER COLUMN scope TYPE varchar(255) COLLATE "default",
    ALTER COLUMN key TYPE varchar(255) COLLATE "default",
    RESET (autovacuum_vacuum_scale_factor)
"""

# The same collation as of the other columns of the key.
IDEMPOTENCYKEY_NAMESPACE = """
ALTER TABLE django_dblock_idempotencykey
    ALTER COLUMN namespace TYPE varchar(255) COLLATE "C"
"""
IDEMPOTENCYKEY_NAMESPACE_REVERSE = """
ALTER TABLE django_dblock_idempotencykey
    ALTER COLUMN namespace TYPE varchar(255) COLLATE "default"
"""

# For DBLOCK_IDEMPOTENCY_MAX_KEYS, which counts the live keys of one scope. The two columns are in
# an expression, because the planner would take a plain index on (namespace, scope, …) for the look-
# up of one key too, where the table was not analysed yet, and read all keys of the scope.
IDEMPOTENCYKEY_LIVE = """
CREATE INDEX django_dblock_idem_live
    ON django_dblock_idempotencykey ((namespace || '/' || scope), expires_at)
"""
IDEMPOTENCYKEY_LIVE_REVERSE = "DROP INDEX django_dblock_idem_live"

# Collation "C", as for the other names.
LATCHPART = """
ALTER TABLE django_dblock_latchpart
    ALTER COLUMN latch TYPE varchar(255) COLLATE "C",
    ALTER COLUMN part TYPE varchar(255) COLLATE "C"
"""
LATCHPART_REVERSE = """
ALTER TABLE django_dblock_latchpart
    ALTER COLUMN latch TYPE varchar(255) COLLATE "default",
    ALTER COLUMN part TYPE varchar(255) COLLATE "default"
"""
