"""The statements of the transaction-scoped locks.

PostgreSQL manual: 9.28.10 "Advisory Lock Functions", 13.3.5 "Advisory Locks". Only the ``xact``
forms: the session forms survive the transaction, so they leak through pools and are released
before COMMIT.

Each first decides whether a lock would mean anything here, in the same round trip. What they
answer instead of taking it:

- ``standby``: the server is in recovery, its locks are unknown to the primary;
- ``cockroach``: the functions exist there and lock nothing;
- the isolation level, where it is none of ``levels`` (a pattern).

One CASE decides it all, because CASE alone promises an order; the arguments of a function are
evaluated from left to right (tests/test_postgresql_facts.py pins it). Flat, without FROM or WITH
where that can be: planning costs more than locking.
"""

# One lock, without waiting: 'locked' or 'busy'. The label is set only where the lock was taken.
TRY = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN NOT CASE
            WHEN %(shared)s THEN pg_try_advisory_xact_lock_shared(%(id)s)
            ELSE pg_try_advisory_xact_lock(%(id)s)
        END
        THEN 'busy'
    WHEN %(application_name)s = '' THEN 'locked'
    ELSE left(set_config('application_name', %(application_name)s, true), 0) || 'locked'
END
"""

# One lock, waiting in the server's queue, first come, first served: 'locked' at once, or 'waited'.
# The label is set first, so that those who wait are seen by name; a failure takes it back with the
# savepoint or the transaction. Only where it has to wait, lock_timeout is set for this wait (a
# timeout_ms below 1 would be no limit), and put back; dblock.lock_timeout keeps the caller's value
# meanwhile, because only the server knows it.
WAIT = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN %(application_name)s <> ''
        AND set_config('application_name', %(application_name)s, true) IS NULL
        THEN NULL
    WHEN CASE
            WHEN %(shared)s THEN pg_try_advisory_xact_lock_shared(%(id)s)
            ELSE pg_try_advisory_xact_lock(%(id)s)
        END
        THEN 'locked'
    ELSE right(concat(
        set_config('dblock.lock_timeout', current_setting('lock_timeout'), true),
        CASE WHEN %(timeout_ms)s::bigint IS NOT NULL
            THEN set_config('lock_timeout', greatest(1, %(timeout_ms)s::bigint)::text, true)
        END,
        CASE WHEN %(shared)s THEN concat(pg_advisory_xact_lock_shared(%(id)s))
            ELSE concat(pg_advisory_xact_lock(%(id)s))
        END,
        set_config('lock_timeout', current_setting('dblock.lock_timeout'), true),
        'waited'
    ), 6)
END
"""

# The same for several locks, a row each, in ascending order of their numbers, so that two callers
# can't wait for each other. lock_timeout counts anew for each lock, so before each wait it is set
# to what is left of the one deadline, counted from the arrival of the message. The sort stands in
# a sub-select: beside it, locks could be taken before the rows are sorted.
WAIT_ALL = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN %(application_name)s <> ''
        AND set_config('application_name', %(application_name)s, true) IS NULL
        THEN NULL
    WHEN CASE
            WHEN %(shared)s THEN pg_try_advisory_xact_lock_shared(wanted.id)
            ELSE pg_try_advisory_xact_lock(wanted.id)
        END
        THEN 'locked'
    ELSE right(concat(
        set_config('dblock.lock_timeout', current_setting('lock_timeout'), true),
        CASE WHEN %(timeout_ms)s::bigint IS NOT NULL
            THEN set_config('lock_timeout', greatest(1, ceil(%(timeout_ms)s::bigint - 1000
                * extract(epoch FROM clock_timestamp() - statement_timestamp())))::text, true)
        END,
        CASE WHEN %(shared)s THEN concat(pg_advisory_xact_lock_shared(wanted.id))
            ELSE concat(pg_advisory_xact_lock(wanted.id))
        END,
        set_config('lock_timeout', current_setting('dblock.lock_timeout'), true),
        'waited'
    ), 6)
END
FROM (SELECT DISTINCT id FROM unnest(%(ids)s::bigint[]) AS id ORDER BY id OFFSET 0) AS wanted
"""

# A failed wait must not take the caller's transaction with it.
SAVEPOINT = "SAVEPOINT dblock"
RELEASE = "RELEASE SAVEPOINT dblock"
ROLLBACK = "ROLLBACK TO SAVEPOINT dblock"
