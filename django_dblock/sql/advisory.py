"""The statements of the transaction-scoped locks.

PostgreSQL manual: 9.28.10 "Advisory Lock Functions", 13.3.5 "Advisory Locks". Only the ``xact``
forms: the session forms survive the transaction, so they leak through pools and are released
before COMMIT.

Both first decide whether a lock would mean anything here, in the same round trip. What they
answer instead of a lock:

- ``standby``: the server is in recovery, its locks are unknown to the primary;
- ``cockroach``: the functions exist there and lock nothing;
- an isolation level above READ COMMITTED, unless the caller allows it.
"""

# One lock, without waiting. Answers 'locked' or 'busy', or why it must not be taken; 'levels' is a
# pattern of the isolation levels that will do. The label is set only where the lock was taken.
# CASE, because it alone promises an order. Two statements and few parameters, because each
# parameter costs the driver about as much as the lock costs the server.
TRY = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN NOT pg_try_advisory_xact_lock(%(id)s) THEN 'busy'
    WHEN %(application_name)s = '' THEN 'locked'
    ELSE left(set_config('application_name', %(application_name)s, true), 0) || 'locked'
END
"""

TRY_SHARED = """
SELECT CASE
    WHEN pg_is_in_recovery() THEN 'standby'
    WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
    WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
        THEN current_setting('transaction_isolation')
    WHEN NOT pg_try_advisory_xact_lock_shared(%(id)s) THEN 'busy'
    WHEN %(application_name)s = '' THEN 'locked'
    ELSE left(set_config('application_name', %(application_name)s, true), 0) || 'locked'
END
"""

# All locks, waiting in the server's queue (first come, first served), in ascending order of their
# numbers so that two callers can't wait for each other. lock_timeout counts anew for each lock, so
# before each it is set to what is left of the one deadline (1 ms at least: 0 would be no limit),
# and after each to the caller's value again. The columns of one row are evaluated from left to
# right (tests/test_postgresql_facts.py). The sort stands in its own CTE: beside it, locks could be
# taken before the rows are sorted.
WAIT = """
WITH terms AS MATERIALIZED (
    SELECT
        CASE
            WHEN pg_is_in_recovery() THEN 'standby'
            WHEN version() LIKE '%%Cockroach%%' THEN 'cockroach'
            WHEN current_setting('transaction_isolation') NOT LIKE %(levels)s
                THEN current_setting('transaction_isolation')
            ELSE 'locked'
        END AS answer,
        current_setting('lock_timeout') AS callers_lock_timeout,
        clock_timestamp() AS started
), wanted AS MATERIALIZED (
    SELECT DISTINCT id FROM unnest(%(ids)s::bigint[]) AS id ORDER BY id
)
SELECT
    terms.answer,
    CASE WHEN terms.answer = 'locked' AND %(application_name)s <> ''
        THEN set_config('application_name', %(application_name)s, true)
    END,
    CASE WHEN terms.answer = 'locked' AND %(timeout_ms)s::bigint IS NOT NULL
        THEN set_config('lock_timeout', greatest(1, ceil(%(timeout_ms)s::bigint
            - 1000 * extract(epoch FROM clock_timestamp() - terms.started)))::text, true)
    END,
    CASE
        WHEN terms.answer <> 'locked' THEN NULL
        WHEN %(shared)s THEN CASE
            WHEN pg_try_advisory_xact_lock_shared(wanted.id) THEN false
            ELSE pg_advisory_xact_lock_shared(wanted.id) IS NOT NULL
        END
        ELSE CASE
            WHEN pg_try_advisory_xact_lock(wanted.id) THEN false
            ELSE pg_advisory_xact_lock(wanted.id) IS NOT NULL
        END
    END AS waited,
    set_config('lock_timeout', terms.callers_lock_timeout, true)
FROM terms, wanted
"""

# A failed wait must not take the caller's transaction with it.
SAVEPOINT = "SAVEPOINT dblock"
RELEASE = "RELEASE SAVEPOINT dblock"
ROLLBACK = "ROLLBACK TO SAVEPOINT dblock"

# The same in one message each, where the driver sends the simple protocol.
SAVEPOINT_WAIT_RELEASE = f"{SAVEPOINT};{WAIT};{RELEASE}"
ROLLBACK_RELEASE = f"{ROLLBACK};{RELEASE}"
