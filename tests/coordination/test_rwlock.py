"""fenced_rwlock: many readers or one writer, and nobody starves."""

import sys

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.utils import timezone

from django_dblock import (
    FencedLock,
    LockLost,
    LockTimeout,
    NotReplicated,
    OpenTransaction,
    SelfDeadlock,
    fenced_lock,
    fenced_rwlock,
    signals,
)
from django_dblock.coordination import rwlock
from django_dblock.fencing import store
from django_dblock.fencing.heartbeat import heartbeat
from tests.app.fenced import Account
from tests.app.models import Counter
from tests.coordination.rows import expire, held
from tests.fencing.helpers import beat_now, in_a_thread
from tests.helpers import observe
from tests.helpers.processes import process, race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

NAME = "catalogue~rwlock"


def lock():
    return fenced_rwlock("catalogue")


def act(channel, mode, timeout=0):
    """Enter, say so, leave when told."""
    block = getattr(lock(), mode)(ttl=30, timeout=timeout)
    channel.send("asks")
    try:
        with block as lease:
            channel.send(lease.token)
            channel.receive()
    except LockTimeout:
        channel.send("refused")


def other(mode, timeout=0):
    return process(act, mode, timeout)


def entered(process_):
    assert process_.receive() == "asks"
    return process_.receive()


def attempt(_number, mode):
    try:
        with getattr(lock(), mode)(ttl=30):
            return "held"
    except LockTimeout:
        return "refused"


def is_free_for(mode):
    return race(1, attempt, mode) == ["held"]


def pass_time(observer, seconds):
    observer.execute(
        "UPDATE django_dblock_fencedlock SET acquired_at = acquired_at - p, "
        "expires_at = expires_at - p FROM make_interval(secs => %s) p",
        [seconds],
    )


def end_of(slot):
    lease = FencedLock.objects.get(name=NAME, slot=slot)
    return lease.expires_at + lease.lock_delay


def free_in(slot):
    return (end_of(slot) - timezone.now()).total_seconds()


def leave(process_):
    process_.send("leave")
    process_.receive()


@pytest.mark.processes
class TestExclusion:
    def test_readers_share(self):
        with lock().read(ttl=30), other("read") as second:
            entered(second)
            assert held(NAME) == [1, 2]
            leave(second)
        assert held(NAME) == []

    def test_writer_keeps_everybody_out(self):
        with lock().write(ttl=30):
            assert held(NAME) == [0]
            assert not is_free_for("read")
            assert not is_free_for("write")
        assert is_free_for("read")
        assert is_free_for("write")

    def test_reader_keeps_writers_out(self):
        with lock().read(ttl=30):
            assert not is_free_for("write")
            assert is_free_for("read")

    def test_dead_writer_is_replaced_after_its_expiry(self, observer):
        with other("write") as writer:
            entered(writer)
            writer.kill()
            assert not is_free_for("read")
            expire(observer, NAME)
            assert is_free_for("read")
            assert is_free_for("write")

    def test_guard_of_a_writer_outlasts_its_lease(self, observer):
        with lock().write(ttl=30) as lease:
            with lease.guard():
                expire(observer, NAME)
                assert not is_free_for("read")
                assert not is_free_for("write")

    def test_guard_of_a_reader_outlasts_its_lease(self, observer):
        with lock().read(ttl=30) as lease:
            with lease.guard():
                expire(observer, NAME)
                assert not is_free_for("write")
                assert is_free_for("read")

    def test_stale_reader_commits_nothing(self, observer):
        with pytest.raises(LockLost), lock().read(ttl=30) as lease:
            expire(observer, NAME)
            assert race(3, attempt, "read") == ["held"] * 3
            assert is_free_for("write")
            with other("read") as newer:
                entered(newer)
                with lease.guard():
                    Counter.objects.create(name="stale")
        assert not Counter.objects.exists()


class TestTokens:
    def test_tokens_of_writers_lie_between_earlier_and_later_ones(self):
        tokens = []
        for mode in ("read", "write", "read", "read", "write", "write", "read"):
            with getattr(lock(), mode)(ttl=30) as lease:
                tokens.append((mode, lease.token))
        for place, (mode, token) in enumerate(tokens):
            for earlier_mode, earlier in tokens[:place]:
                if "write" in (mode, earlier_mode):
                    assert token > earlier

    def test_tokens_grow_if_the_clock_is_behind_them(self, observer):
        with lock().read(ttl=30):
            pass
        observer.execute("UPDATE django_dblock_fencedlock SET token = 9e15 WHERE slot = 1")
        with lock().write(ttl=30) as lease:
            assert lease.token == 9e15 + 2
        with lock().read(ttl=30) as lease:
            assert lease.token == 9e15 + 4

    def test_reader_cannot_save_fenced(self):
        account = Account.objects.create(name="a")
        with lock().write(ttl=30) as lease:
            account.save_fenced(lease)
        with lock().read(ttl=30) as lease, pytest.raises(TypeError, match="guard"):
            account.save_fenced(lease)


@pytest.mark.processes
class TestWaiting:
    def test_waiting_writer_keeps_new_readers_out(self, observer):
        with other("read") as reader:
            entered(reader)
            with other("write", timeout=30) as writer:
                assert writer.receive() == "asks"
                observe.until(lambda: tickets(observer) == [0], "the writer queues")
                assert not is_free_for("read")
                leave(reader)
                assert isinstance(writer.receive(), int)
                leave(writer)
        assert tickets(observer) == []

    def test_reader_ahead_of_the_next_writer_reads_first(self, observer):
        with other("write") as first:
            entered(first)
            with other("read", timeout=30) as reader:
                assert reader.receive() == "asks"
                observe.until(lambda: tickets(observer) == [1], "the reader queues")
                with other("write", timeout=30) as second:
                    assert second.receive() == "asks"
                    observe.until(lambda: tickets(observer) == [1, 0], "the writer queues")
                    leave(first)
                    read = reader.receive()
                    leave(reader)
                    assert second.receive() > read
                    leave(second)

    def test_timeout_leaves_the_queue(self, observer):
        with lock().read(ttl=30), other("write", timeout=0.05) as writer:
            assert writer.receive() == "asks"
            assert writer.receive() == "refused"
            assert tickets(observer) == []


def tickets(observer):
    rows = observer.execute("SELECT slot FROM django_dblock_fencedticket ORDER BY id").fetchall()
    return [slot for (slot,) in rows]


class TestSelf:
    def test_upgrade_is_refused(self):
        with lock().read(ttl=30):
            with pytest.raises(SelfDeadlock, match="upgraded") as caught:
                lock().write(ttl=30, timeout=None).__enter__()
        assert caught.value.key == ("catalogue",)
        with lock().write(ttl=30):
            pass

    @pytest.mark.parametrize("mode", ["read", "write"])
    def test_second_lease_under_ones_own_write_is_refused(self, mode):
        with lock().write(ttl=30):
            with pytest.raises(SelfDeadlock, match="downgrade"):
                getattr(lock(), mode)(ttl=30, timeout=None).__enter__()

    def test_second_read_of_a_reader_is_granted(self):
        with lock().read(ttl=30), lock().read(ttl=30), fenced_rwlock("other").write(ttl=30):
            assert held(NAME) == [1, 2]

    @pytest.mark.processes
    def test_second_read_passes_a_waiting_writer(self, observer):
        """Behind the writer it would wait for itself: the writer waits for its first read."""
        with lock().read(ttl=30) as first, other("write", timeout=30) as writer:
            assert writer.receive() == "asks"
            observe.until(lambda: tickets(observer) == [0], "the writer queues")
            with lock().read(ttl=30):
                assert held(NAME) == [1, 2]
                assert not is_free_for("read")  # the negative twin: somebody new
            first.release()
            assert isinstance(writer.receive(), int)
            leave(writer)

    def test_lost_read_does_not_refuse_a_write(self, observer):
        with pytest.raises(LockLost), lock().read(ttl=30) as lease:
            expire(observer, NAME)
            lease.trust.lose("lost for the test")
            with lock().write(ttl=30):
                pass

    def test_self_deadlock_is_picklable(self):
        import pickle

        with lock().read(ttl=30), pytest.raises(SelfDeadlock) as caught:
            lock().write(ttl=30).__enter__()
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.act, again.advice) == (caught.value.act, caught.value.advice)


class TestDowngrade:
    def test_downgrade_is_one_statement_without_a_gap(self, statements):
        with lock().write(ttl=30, metadata={"a": 1}) as writing:
            with statements() as sent:
                block = writing.downgrade()
                reading = block.__enter__()
            assert len(sent) == 1
            assert reading.token > writing.token
            assert held(NAME) == [1]
            assert is_free_for("read")
            assert not is_free_for("write")
            with pytest.raises(LockLost):
                writing.check()
            with pytest.raises(SelfDeadlock):
                lock().write(ttl=30).__enter__()
            block.__exit__(None, None, None)
            assert held(NAME) == []
        assert not writing.lost

    def test_downgrade_takes_a_ttl(self):
        with lock().write(ttl=30) as writing, writing.downgrade(ttl=300) as reading:
            assert reading.remaining > 30
        with lock().write(ttl=30) as writing, pytest.raises(ValueError, match="ttl"):
            writing.downgrade(ttl=0)

    def test_downgrade_keeps_writers_out_for_hold_at_least(self, observer):
        """The writer's, counted from its grant; readers may read meanwhile."""
        with lock().write(ttl=30, hold_at_least=60) as writing:
            pass_time(observer, 20)
            writing._since -= 20
            granted = FencedLock.objects.get(name=NAME, slot=0).acquired_at
            with writing.downgrade(ttl=10):
                assert is_free_for("read")
        # Seen from the grant, as a process takes seconds to start on a slow machine.
        assert (end_of(1) - granted).total_seconds() == pytest.approx(60, abs=2)
        assert is_free_for("read")
        assert not is_free_for("write")
        pass_time(observer, 42)
        assert is_free_for("write")

    @pytest.mark.parametrize(("hold", "left"), [(60, 60), (20, 30)])
    def test_reader_that_dies_after_a_downgrade_keeps_writers_out(self, hold, left):
        with lock().write(ttl=30, hold_at_least=hold) as writing, writing.downgrade():
            assert free_in(1) == pytest.approx(left, abs=2)

    def test_hold_at_least_that_is_over_at_the_downgrade(self):
        with lock().write(ttl=30, hold_at_least=60) as writing:
            writing._since -= 61
            with writing.downgrade():
                assert free_in(1) == pytest.approx(30, abs=2)
        assert is_free_for("write")

    def test_write_lease_is_held_on_after_a_downgrade_in_a_transaction(self):
        """Nothing was sent, as for a release in a transaction."""
        with lock().write(ttl=30) as writing:
            with transaction.atomic(), pytest.raises(OpenTransaction):
                writing.downgrade().__enter__()
            writing.check()
            assert writing.trust in heartbeat.of("default")._due
            with writing.downgrade():
                assert held(NAME) == [1]

    def test_interrupted_downgrade_leaves_nothing_held(self, monkeypatch):
        """As by a signal handler's exception: nobody would release the read lease."""
        with pytest.raises(SystemExit), lock().write(ttl=30) as writing:
            monkeypatch.setattr(heartbeat, "watch", lambda *_, **__: sys.exit())
            writing.downgrade().__enter__()
        assert held(NAME) == []

    def test_lost_writer_cannot_downgrade(self, observer):
        with pytest.raises(LockLost), lock().write(ttl=30) as writing:
            expire(observer, NAME)
            writing.downgrade().__enter__()
        assert held(NAME) == []

    def test_loss_after_the_downgrade_is_raised(self, observer):
        with lock().write(ttl=30) as writing:
            with pytest.raises(LockLost):
                with writing.downgrade() as reading:
                    reading.trust.lose("lost for the test")

    def test_not_renewed_if_its_thread_ends_in_the_block(self):
        left = []

        def enter():
            writing = lock().write(ttl=60)
            left.extend([writing, block := writing.__enter__().downgrade(), block.__enter__()])

        in_a_thread(enter)
        writing, block, reading = left
        beat_now()
        observe.until(lambda: reading.lost, "it is told at the next beat")
        assert "the thread that entered the block has ended" in reading.trust.reason
        with pytest.raises(LockLost):
            block.__exit__(None, None, None)
        writing.__exit__(None, None, None)


def test_acquire_and_release_are_one_statement_each(statements):
    for mode in ("read", "write"):
        with getattr(lock(), mode)(ttl=30):
            pass
        with statements() as sent, getattr(lock(), mode)(ttl=30):
            pass
        assert len(sent) == 2


def test_lock_works_with_server_side_binding(monkeypatch):
    connection.close()
    options = {**connection.settings_dict["OPTIONS"], "server_side_binding": True}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    try:
        with lock().write(ttl=30) as writing, writing.downgrade():
            assert held(NAME) == [1]
        with lock().read(ttl=30):
            pass
    finally:
        connection.close()


def test_lock_works_at_repeatable_read(observer):
    """READ COMMITTED, whatever the role's default is."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_isolation = 'repeatable read'")
    try:
        with lock().read(ttl=30):
            assert not is_free_for("write")
        with lock().write(ttl=30):
            pass
    finally:
        connection.close()


def test_unconfirmed_commit_does_not_acquire(monkeypatch):
    real = store.durable_together
    monkeypatch.setattr(store, "durable_together", lambda *a: real(*a) and False)
    with pytest.raises(NotReplicated), lock().read(ttl=30):
        pass
    assert held(NAME) == []


def test_open_transaction_is_refused():
    with transaction.atomic(), pytest.raises(OpenTransaction):
        lock().read(ttl=30).__enter__()


def test_rwlock_is_independent_of_a_lock_on_the_same_key():
    with fenced_lock("catalogue", ttl=30), lock().write(ttl=30):
        pass


def test_decorated_function_reads_and_sends_the_signal():
    heard = []

    def hear(signal, sender, **data):
        heard.append(data["kind"])

    @lock().read(ttl=30)
    def read():
        return held(NAME)

    signals.lock_acquired.connect(hear)
    try:
        assert read() == [1]
    finally:
        signals.lock_acquired.disconnect(hear)
    assert heard == ["rwlock"]


def test_async_block_reads():
    async def enter():
        async with lock().read(ttl=30) as reading:
            return type(reading).__name__

    assert async_to_sync(enter)() == "ReadLease"
    with lock().write(ttl=30):
        pass


def test_wrong_key_is_refused_before_sql(statements):
    with statements() as sent, pytest.raises(TypeError):
        fenced_rwlock(1.5)
    assert len(sent) == 0


def enter_often(number, one_statement):
    """Read or write in turns; note each meeting of a writer with somebody else."""
    if one_statement:
        count_in_the_statement_that_waits()
    met = []
    for turn in range(25):
        writes = (turn + number) % 3 == 0
        block = lock().write if writes else lock().read
        with block(ttl=30, timeout=None) as lease:
            me = f"{'w' if writes else 'r'} {number} {turn}"
            with lease.guard():
                Counter.objects.create(name=me)
            names = set(Counter.objects.values_list("name", flat=True)) - {me}
            if writes and names:
                met.append((me, names))
            if not writes and any(name.startswith("w") for name in names):
                met.append((me, names))
            with lease.guard():
                Counter.objects.filter(name=me).delete()
    return met


def count_in_the_statement_that_waits():
    """The trap: the snapshot in which readers are counted is from before the wait for the gate."""
    rwlock.sql.LOCK_GATE = rwlock.sql.MAKE_GATE
    locked = "AND id::text = current_setting('django_dblock.gate', true)"
    for name in ("ACQUIRE_READ", "ACQUIRE_WRITE"):
        statement = getattr(rwlock.sql, name)
        assert locked in statement
        statement = statement.replace(locked, "").replace("UPDATE SKIP LOCKED", "UPDATE", 1)
        setattr(rwlock.sql, name, statement)


@pytest.mark.processes
def test_writer_never_meets_anybody():
    assert race(4, enter_often, False) == [[]] * 4


@pytest.mark.processes
def test_negative_twin_one_waiting_statement_lets_them_meet(observer, rival):
    """The negative twin of the three statements, in an order that is seen and not left to luck."""
    with lock().write(ttl=30):  # the rows are there
        pass
    for slot, twin, expected in ((1, True, "held"), (2, False, "refused")):
        gate = "SELECT FROM django_dblock_fencedlock WHERE name = %s AND slot = 0 FOR UPDATE"
        reads = (
            "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at,"
            " renewed_at, expires_at, lock_delay, grants, metadata)"
            " VALUES (%s, %s, 1, '', now(), now(), now() + interval '1 min', '0', 1, '{}')"
        )
        with process(write_once, twin) as writer:
            with rival.transaction():
                rival.execute(gate, [NAME])
                assert writer.receive() == "asks"
                observe.until(lambda: blocked(observer), "the writer waits for the gate")
                rival.execute(reads, [NAME, slot])  # a reader is granted meanwhile
            assert writer.receive() == expected
        expire(observer, NAME)


def blocked(observer):
    return observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    ).fetchone()[0]


def write_once(channel, one_statement):
    if one_statement:
        count_in_the_statement_that_waits()
    channel.send("asks")
    return attempt(0, "write")
