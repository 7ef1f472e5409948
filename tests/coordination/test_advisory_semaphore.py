"""advisory_semaphore: at most N transactions at a time."""

import functools
import threading
from contextlib import suppress

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, transaction

from django_dblock import (
    LockTimeout,
    UnsafeIsolation,
    advisory_semaphore,
    inspect,
    signals,
)
from tests.app.models import Counter
from tests.helpers import observe
from tests.helpers.processes import process, race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]


def hold(channel, permits=2, timeout=0):
    with advisory_semaphore("pdf", permits=permits, timeout=timeout) as permit:
        channel.send(permit.slot)
        channel.receive()
    channel.send("left")


def test_limit_is_the_number_of_permits():
    with process(hold) as one, process(hold) as two:
        assert {one.receive(), two.receive()} == {0, 1}
        with pytest.raises(LockTimeout, match="2 transactions, which is its limit"):
            advisory_semaphore("pdf", permits=2, timeout=0).__enter__()
        one.send("leave")
        assert one.receive() == "left"
        with advisory_semaphore("pdf", permits=2, timeout=0) as permit:
            assert permit.waited == 0.0
            assert permit.using == "default"
            assert repr(permit).startswith("<HeldPermit ('pdf',) slot=")
        two.send("leave")


def test_one_statement_takes_one_permit(statements, observer):
    """PostgreSQL fact: LIMIT 1 over unnest() stops at the first lock that could be taken."""
    with statements() as sent:
        with advisory_semaphore("pdf", permits=50):
            assert len(observe.locks(observer)) == 1
    assert len(sent) == 3  # BEGIN (which travels with it), the lock, COMMIT


def test_waiter_acquires_when_a_holder_leaves(observer):
    with process(hold, 1) as holder:
        holder.receive()
        with process(hold, 1, 30) as waiter:
            observe.until_blocked(observer)
            holder.send("leave")
            assert waiter.receive() == 0
            waiter.send("leave")


def test_timeout_leaves_transaction_usable():
    with process(hold, 1) as holder:
        holder.receive()
        with transaction.atomic():
            Counter.objects.create(name="before")
            with pytest.raises(LockTimeout) as caught:
                advisory_semaphore("pdf", permits=1, timeout=0.3).__enter__()
            assert caught.value.keys == (("pdf",),)
            Counter.objects.create(name="after")
        holder.send("leave")
    assert Counter.objects.count() == 2


def test_commit_and_death_free_the_permit(observer):
    with transaction.atomic():
        with advisory_semaphore("pdf", permits=1):
            pass
        assert len(observe.locks(observer)) == 1
    assert observe.locks(observer) == []
    with process(hold, 1) as holder:
        holder.receive()
        holder.kill()
    with advisory_semaphore("pdf", permits=1, timeout=30):
        pass


def test_permit_is_listed_by_its_name():
    with advisory_semaphore("pdf", permits=3) as permit:
        [shown] = inspect.advisory_locks()
        assert shown.name == f"pdf:permit:{permit.slot}"


def test_each_signal_names_kind_and_key():
    heard = []

    def hear(signal, sender, **data):
        heard.append((signal, data["kind"], data["keys"]))

    watched = [
        signals.lock_acquired,
        signals.lock_released,
        signals.lock_timeout,
        signals.lock_refused,
    ]
    for signal in watched:
        signal.connect(hear)
    try:
        with advisory_semaphore("pdf", permits=1):
            pass
        with process(hold, 1) as holder:
            holder.receive()
            with pytest.raises(LockTimeout):
                advisory_semaphore("pdf", permits=1, timeout=0).__enter__()
            holder.send("leave")
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            with pytest.raises(UnsafeIsolation):
                advisory_semaphore("pdf", permits=1).__enter__()
    finally:
        for signal in watched:
            signal.disconnect(hear)
    assert heard == [(signal, "advisory_semaphore", (("pdf",),)) for signal in watched]


def test_decorated_function_runs_under_a_permit():
    @advisory_semaphore("tenant", lambda tenant: tenant, permits=1)
    def render(tenant):
        [shown] = inspect.advisory_locks()
        return shown.name

    assert render("a") == "tenant:a:permit:0"

    @advisory_semaphore("all", permits=1)
    def plain():
        return "done"

    assert plain() == "done"


def test_wrong_uses_and_arguments_are_refused():
    async def coroutine():
        pass

    async def enter():
        async with advisory_semaphore("pdf", permits=1):
            pass

    with pytest.raises(TypeError, match="transactions can't span an await"):
        advisory_semaphore("pdf", permits=1)(coroutine)
    with pytest.raises(TypeError, match="transactions can't span an await"):
        async_to_sync(enter)()
    with pytest.raises(TypeError, match="class"):
        advisory_semaphore("pdf", permits=1)(Counter)
    with pytest.raises(TypeError, match="decorator"):
        advisory_semaphore(lambda: "pdf", permits=1).__enter__()
    with pytest.raises(ValueError, match="timeout"):
        advisory_semaphore("pdf", permits=1, timeout=-1)
    with pytest.raises(ValueError, match="permits"):
        advisory_semaphore("pdf", permits=201)


def test_generators_are_refused():
    def pages():
        yield 1

    with pytest.raises(TypeError, match="generator function"):
        advisory_semaphore("pdf", permits=1)(pages)
    render = advisory_semaphore("pdf", permits=1)(functools.partial(next, iter([pages()])))
    with pytest.raises(TypeError, match="returned a generator"):
        render()


def forget(_semaphore):
    """Do not enter it; it goes when this returns."""


def test_semaphore_that_is_never_entered_warns():
    with pytest.warns(ResourceWarning, match="never entered"):
        forget(advisory_semaphore("pdf", permits=1))


def test_dead_connection_is_replaced(observer):
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    observer.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
    with pytest.raises(OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    with advisory_semaphore("pdf", permits=1):
        pass


def test_transaction_aborted_unseen_is_reported_as_no_commit():
    ends = []

    def hear(signal, committed, **data):
        ends.append(committed)

    signals.lock_released.connect(hear)
    try:
        with advisory_semaphore("pdf", permits=1):
            with suppress(psycopg.Error):  # past Django, which does not see the error
                connection.connection.execute("SELECT 1 / 0")
    finally:
        signals.lock_released.disconnect(hear)
    assert ends == [False]


def test_error_in_the_block_propagates_and_frees_the_permit(observer):
    with pytest.raises(ZeroDivisionError), advisory_semaphore("pdf", permits=1):
        raise ZeroDivisionError
    assert observe.locks(observer) == []


def test_snapshot_isolation_is_refused():
    with pytest.raises(UnsafeIsolation), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        with advisory_semaphore("pdf", permits=2):
            pass


@pytest.mark.processes
def test_never_more_than_permits_at_a_time():
    assert max(max(met) for met in race(4, meet, 2)) <= 2


@pytest.mark.processes
def test_negative_twin_without_the_semaphore_more_meet():
    """The negative twin: the same transactions without permits do meet in larger numbers."""
    assert max(max(met) for met in race(4, meet, 4)) > 2


def meet(_number, permits):
    """Count advisory locks of a second key that every transaction in the block holds shared."""
    met = []
    for _ in range(15):
        with advisory_semaphore("pdf", permits=permits, timeout=None):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock_shared(7, 7), pg_sleep(0.01)")
                cursor.execute(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7"
                    " AND objid = 7 AND objsubid = 2"
                )
                met.append(cursor.fetchone()[0])
    return met


def test_waiter_in_this_process_acquires_and_knows_its_wait(observer):
    def free():
        observe.until_blocked(observer)
        holder.send("leave")

    with process(hold, 1) as holder:
        holder.receive()
        freeing = threading.Thread(target=free)
        freeing.start()
        with advisory_semaphore("pdf", permits=1, timeout=60) as permit:
            assert permit.waited > 0
            assert permit.slot == 0
        freeing.join()


def test_other_error_while_entering_propagates(monkeypatch):
    def fail(_request):
        raise ZeroDivisionError

    monkeypatch.setattr("django_dblock.coordination.semaphore.try_any", fail)
    with pytest.raises(ZeroDivisionError):
        advisory_semaphore("pdf", permits=1).__enter__()
    assert not connection.in_atomic_block
