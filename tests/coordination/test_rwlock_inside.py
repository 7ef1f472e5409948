"""fenced_rwlock: what others do while one of its statements is between its look and its lock.

A statement judges rows by its snapshot and locks them later. If the row was written in between, the
server judges it again; if it was only locked, it does not. The clock of these tests stops a
statement in between.
"""

from contextlib import nullcontext

import pytest
from django.db import connection

from django_dblock import LockLost, fenced_rwlock
from django_dblock.coordination import rwlock
from django_dblock.fencing import store
from tests.coordination.rows import held
from tests.helpers import observe, schedules
from tests.helpers.actors import SEE_IT
from tests.helpers.processes import process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]

NAME = "catalogue~rwlock"
PAUSE = 4711

# The time is read first, then the statement may be held up for as long as a test wants.
SLOW_CLOCK = f"""
CREATE OR REPLACE FUNCTION schedules.clock_timestamp() RETURNS timestamptz
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment timestamptz := pg_catalog.clock_timestamp()
        + (SELECT last_value FROM schedules.ahead) * interval '1 second';
BEGIN
    IF current_setting('schedules.pauses', true) = 'on' THEN
        PERFORM pg_advisory_lock_shared({PAUSE});
        PERFORM pg_advisory_unlock_shared({PAUSE});
    END IF;
    RETURN moment;
END $$
"""


@pytest.fixture
def looking(connect):
    with schedules.clocked(connect(), SLOW_CLOCK) as own:
        yield own


@pytest.fixture
def here():
    """This thread's connection sees the clock of the test."""
    see_the_clock()
    yield
    connection.close()


def see_the_clock():
    with connection.cursor() as cursor:
        cursor.execute(SEE_IT)


def pause_from_now_on():
    with connection.cursor() as cursor:
        cursor.execute("SET schedules.pauses = 'on'")


def lock():
    return fenced_rwlock("catalogue")


def hold(channel, mode, act):
    """Enter; when told, do what looks at the lease's expiry, slowly; say how it ended."""
    see_the_clock()
    try:
        with getattr(lock(), mode)(ttl=60, heartbeat=False) as lease:
            channel.send("has it")
            channel.receive()
            pause_from_now_on()
            with lease.guard() if act == "guard" else nullcontext(lease.renew()):
                channel.send("had it")
                channel.receive()
    except LockLost:
        channel.send("lost it")


@pytest.mark.parametrize("act", ["guard", "renew"])
@pytest.mark.parametrize(("mode", "after"), [("read", "write"), ("write", "read")])
def test_look_before_the_expiry_is_refused_after_a_grant(looking, here, rival, mode, after, act):
    with process(hold, mode, act) as holder:
        assert holder.receive() == "has it"
        rival.execute("SELECT pg_advisory_lock(%s)", [PAUSE])
        holder.send("go")
        observe.until_blocked(looking)  # it has read the time, and not locked the row
        looking.execute("SELECT setval('schedules.ahead', 61)")
        with getattr(lock(), after)(ttl=60, heartbeat=False):
            rival.execute("SELECT pg_advisory_unlock(%s)", [PAUSE])
            assert holder.receive() == "lost it"


def write_statement_by_statement(channel):
    """Ask for the write lock, and stop before each statement."""
    see_the_clock()

    def gate(execute, sql, params, many, context):
        channel.send(sql)
        if channel.receive() == "slowly":
            pause()
        return execute(sql, params, many, context)

    def pause():
        connection.connection.execute("SET LOCAL schedules.pauses = 'on'")

    store._takes_several = lambda _: False
    with connection.execute_wrapper(gate):
        block = lock().write(ttl=60, heartbeat=False)
        attempt = block._attempt()
        rwlock._acquire_write(attempt.place, block._wish, None)
    channel.send(held(NAME))


def reach(other, statement):
    """Let it go on until it is at this statement."""
    while statement not in other.receive():
        other.send("go")


def test_gate_purged_and_made_again_is_not_locked(looking, here, rival):
    with lock().write(ttl=60, heartbeat=False):
        pass
    with process(write_statement_by_statement) as writer:
        reach(writer, "FOR NO KEY UPDATE")
        looking.execute("DELETE FROM django_dblock_fencedlock")  # as a purge does
        writer.send("go")
        assert "FOR UPDATE SKIP LOCKED" in writer.receive()
        with lock().write(ttl=60, heartbeat=False):
            pass
        rival.execute("SELECT pg_advisory_lock(%s)", [PAUSE])
        writer.send("slowly")
        observe.until_blocked(looking)  # it has its snapshot, and not locked the gate
        with lock().read(ttl=60, heartbeat=False):
            rival.execute("SELECT pg_advisory_unlock(%s)", [PAUSE])
            assert writer.receive() == [1]
