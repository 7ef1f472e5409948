"""A holder that dies frees its lock at once, and leaves nothing behind."""

import signal

import pytest
from django.db import OperationalError, connection

from django_dblock import advisory_lock, advisory_locks
from tests.helpers import observe
from tests.helpers.processes import process

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]

KEYS = [("a",), ("b",)]


def hold(channel):
    with advisory_locks(KEYS):
        channel.send(connection.connection.info.backend_pid)
        channel.receive()


def wait(channel):
    with advisory_locks(KEYS, timeout=30) as locks:
        return locks.waited


@pytest.mark.parametrize("how", ["SIGKILL", "pg_terminate_backend"])
def test_dead_holder_frees_the_lock_at_once(how, observer):
    """The one who waits has it before any time-out could have come into it."""
    with process(hold) as holder:
        backend = holder.receive()
        with process(wait) as waiter:
            observe.until_blocked(observer)
            if how == "SIGKILL":
                holder.kill()
            else:
                observer.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
            assert waiter.receive() < 10
    observe.until(lambda: not observe.locks(observer), "nothing is locked")


def test_terminated_holder_gets_an_error(observer):
    with process(hold) as holder:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [holder.receive()])
        holder.send("go on")
        with pytest.raises(OperationalError, match=r"terminat|closed"):
            holder.receive()


def test_paused_holder_keeps_its_lock(observer):
    """It has no lease that could run out: others wait, nobody writes under a stale lock."""
    with process(hold) as holder:
        holder.receive()
        holder.signal(signal.SIGSTOP)
        with process(wait) as waiter:
            observe.until_blocked(observer)
            with pytest.raises(TimeoutError), advisory_lock("a", timeout=0.2):
                pass
            holder.signal(signal.SIGCONT)
            holder.send("go on")
            holder.receive()
            assert waiter.receive() > 0
