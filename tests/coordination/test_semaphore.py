"""fenced_semaphore: at most N at a time, by rows that nothing can make drift."""

import threading
import time
from contextlib import ExitStack

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction

from django_dblock import (
    FencedLock,
    LockLost,
    LockTimeout,
    NotReplicated,
    OpenTransaction,
    UnsupportedDatabase,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    leadership,
    partitions,
    signals,
)
from django_dblock.coordination import slots
from django_dblock.core.application_name import named
from django_dblock.fencing import store
from tests.app.fenced import Account
from tests.app.models import Counter
from tests.coordination.rows import expire, held
from tests.fencing.helpers import in_a_thread
from tests.helpers import observe
from tests.helpers.processes import process, race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

NAME = "api~semaphore"


def semaphore(permits=2, **more):
    return fenced_semaphore("api", permits=permits, ttl=more.pop("ttl", 30), **more)


def test_limit_is_the_number_of_permits():
    with semaphore() as first, semaphore() as second:
        assert {first.slot, second.slot} == {0, 1}
        assert held(NAME) == [0, 1]
        with pytest.raises(LockTimeout, match=r"and 1 more held"), semaphore():
            pass
    assert held(NAME) == []
    with semaphore() as third:
        assert third.slot == 0


def test_semaphore_is_independent_of_a_lock_on_the_same_key():
    with fenced_lock("api", ttl=30), semaphore(1):
        with pytest.raises(LockTimeout), fenced_lock("api", ttl=30):
            pass


def test_permit_is_two_statements_and_a_refusal_one(statements):
    with statements() as sent, semaphore():
        pass
    assert len(sent) == 3  # the first time ever: rows are made in between
    with statements() as sent, semaphore():
        pass
    assert len(sent) == 2
    with semaphore(1), statements() as sent:
        with pytest.raises(LockTimeout), semaphore(1):
            pass
    assert len(sent) == 1


def test_tokens_of_a_slot_grow():
    tokens = []
    for _ in range(3):
        with semaphore(1) as permit:
            tokens.append(permit.token)
    assert tokens == sorted(set(tokens))


def test_permit_of_a_dead_holder_is_free_after_its_expiry(observer):
    with process(hold, 30) as holder:
        assert holder.receive() == 0
        holder.kill()
        with pytest.raises(LockTimeout), semaphore(1):
            pass
        expire(observer, NAME)
        with semaphore(1) as permit:
            assert permit.slot == 0


def test_second_release_spares_a_later_permit(observer):
    with semaphore(1) as permit:
        stale = permit._place, permit.token
        assert permit.release()
        with semaphore(1):
            assert not store.release(stale[0], stale[1], hold_at_least=0)
            assert not permit.release()
            assert held(NAME) == [0]


def test_stale_permit_commits_nothing(observer):
    with pytest.raises(LockLost), semaphore(1) as permit:
        expire(observer, NAME)
        with semaphore(1):
            with permit.guard():
                Counter.objects.create(name="stale")
    assert not Counter.objects.exists()


def test_guard_keeps_the_slot_after_its_expiry(observer):
    with pytest.raises(LockLost), semaphore(1) as permit:
        with permit.guard():
            expire(observer, NAME)
            assert race(1, try_once) == ["refused"]
        assert race(1, try_once) == ["held"]
    # the exit finds that somebody else had it


def test_lowered_limit_counts_the_higher_slots_as_held():
    with semaphore(3), semaphore(3), semaphore(3) as last:
        assert last.slot == 2
        with pytest.raises(LockTimeout), semaphore(2):
            pass
    with semaphore(2) as one, semaphore(2) as two:
        assert {one.slot, two.slot} == {0, 1}
        with pytest.raises(LockTimeout), semaphore(2):
            pass


class TestUnits:
    def test_units_are_granted_all_or_none(self, statements):
        with semaphore(5, units=3) as permit:
            assert permit.slots == (0, 1, 2)
            with pytest.raises(LockTimeout), semaphore(5, units=3):
                pass
            assert held(NAME) == [0, 1, 2]
            with semaphore(5, units=2) as other:
                assert other.slots == (3, 4)
        assert held(NAME) == []

    def test_slots_are_sorted_whatever_the_order_of_the_rows(self):
        place = slots.place_of(named(("api",)), "semaphore", "default")
        rows = [("acquired", slot, 7, None, None, "public", None, True) for slot in (2, 0, 1)]
        grant = slots.answer(place, rows, "held", replicated=True)
        assert [each.slot for each in grant.slots] == [0, 1, 2]

    def test_locked_free_slots_leave_no_partial_permit(self, rival):
        """Another seeker is taking them: enough were free, and one of them is left."""
        with semaphore(3, units=2):
            pass
        with rival.transaction():
            rival.execute("SELECT FROM django_dblock_fencedlock WHERE slot < 2 FOR UPDATE")
            with pytest.raises(LockTimeout), semaphore(3, units=2) as permit:
                pytest.fail(f"half of it: {permit.slots}")
        assert held(NAME) == []

    def test_units_are_taken_and_released_in_one_statement_each(self, statements):
        with semaphore(5, units=3):
            pass
        with statements() as sent, semaphore(5, units=3):
            pass
        assert len(sent) == 2

    def test_permit_with_one_lost_slot_is_lost(self, observer):
        with pytest.raises(LockLost), semaphore(3, units=3) as permit:
            expire(observer, NAME, slot=2)
            with semaphore(3):
                with permit.guard():
                    Counter.objects.create(name="stale")
        assert permit.lost
        assert permit.remaining == 0
        assert not Counter.objects.exists()

    def test_units_are_released_in_the_order_of_their_slots(self, rival, observer):
        """A waiter locks the slots from the lowest on; a release in another order may deadlock."""
        with semaphore(units=2) as permit:
            for slot in (1, 0):  # so they lie in the table in this order, too
                expired = "UPDATE django_dblock_fencedlock SET renewed_at = now() WHERE slot = %s"
                observer.execute(expired, [slot])
            identities = [slots.identity(trust) for trust in reversed(permit.trusts)]
            gate = "SELECT FROM django_dblock_fencedlock WHERE slot = %s FOR NO KEY UPDATE"
            with rival.transaction():
                rival.execute(gate, [0])
                releasing = threading.Thread(
                    target=in_a_thread,
                    args=[lambda: slots.give_back(permit.place, identities)],
                )
                releasing.start()
                observe.until(lambda: blocked(observer), "the release waits for slot 0")
                assert observer.execute(f"{gate} SKIP LOCKED", [1]).fetchall() == [()]
            releasing.join()
        assert held(NAME) == []

    def test_units_are_renewed_together(self):
        with semaphore(3, units=2, heartbeat=False) as permit:
            before = permit.expires_at
            permit.renew(60)
            assert permit.expires_at > before
            assert permit.remaining > 50
            with permit.guard():
                Counter.objects.create(name="fresh")
        assert Counter.objects.get().name == "fresh"

    def test_slot_expired_unnoticed_is_a_loss(self):
        with pytest.raises(LockLost), semaphore(2, units=2, heartbeat=False) as permit:
            permit._others[0]._deadline = 0
            assert permit.lost


class TestFair:
    def test_fair_waiter_for_two_is_not_overtaken_by_fair_ones(self, observer):
        """Those that want one permit would otherwise overtake it again and again."""
        with ExitStack() as stack:
            with semaphore(2):
                first = stack.enter_context(process(wait_fair, 2))
                assert first.receive() == "waits"
                observe.until(lambda: _tickets(observer) == 1, "it queues")
                with pytest.raises(LockTimeout), semaphore(2, fair=True):
                    pass
                with semaphore(2, timeout=30):  # without fair=True it may take what is free
                    pass
            assert first.receive() == "held"
        assert _tickets(observer) == 0

    def test_two_free_permits_serve_the_first_two_tickets(self, observer):
        observer.execute(
            "INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)"
            " SELECT %s, 0, 'dead', clock_timestamp() + interval '1 min'",
            [NAME],
        )
        with semaphore(2, fair=True) as permit:  # two free, one ticket before us
            assert permit.slot == 0
            with pytest.raises(LockTimeout), semaphore(2, fair=True):
                pass


def blocked(observer):
    return observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    ).fetchone()[0]


def test_save_fenced_with_a_permit_is_refused():
    account = Account.objects.create(name="a")
    with semaphore(1) as permit:
        with pytest.raises(TypeError, match="guard"):
            account.save_fenced(permit)


def test_metadata_is_stored_and_the_signal_names_the_kind():
    heard = []

    def hear(signal, sender, **data):
        heard.append((sender, data["kind"], data["name"]))

    signals.lock_acquired.connect(hear)
    try:
        with semaphore(1, metadata={"job": 7}):
            assert FencedLock.objects.get(slot=0).metadata == {"job": 7}
    finally:
        signals.lock_acquired.disconnect(hear)
    assert heard == [(fenced_semaphore, "semaphore", "api")]


def test_decorated_function_runs_under_a_permit():
    @fenced_semaphore("tenant", lambda tenant: tenant, permits=1, ttl=30)
    def call(tenant):
        return held(f"tenant:{tenant}~semaphore")

    assert call("a") == [0]
    assert call("b") == [0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"permits": 0}, ValueError),
        ({"permits": 10_001}, ValueError),
        ({"permits": True}, TypeError),
        ({"permits": 2.0}, TypeError),
        ({"permits": 2, "units": 3}, ValueError),
        ({"permits": 2, "units": 0}, ValueError),
        ({"permits": 2, "ttl": 0}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_before_sql(arguments, error, statements):
    with statements() as sent, pytest.raises(error):
        fenced_semaphore("api", **{"ttl": 30, **arguments})
    assert len(sent) == 0


def test_callable_key_in_a_with_block_is_refused():
    with pytest.raises(TypeError, match="decorator"):
        fenced_semaphore(lambda: 1, permits=1, ttl=30).__enter__()


def test_open_transaction_is_refused():
    with transaction.atomic(), pytest.raises(OpenTransaction), semaphore():
        pass
    assert not connection.in_atomic_block


def test_async_block_holds_a_permit():
    async def enter():
        async with semaphore(1) as permit:
            return permit.slot

    assert async_to_sync(enter)() == 0


@pytest.mark.processes
def test_never_more_than_permits_at_a_time():
    """Each holder notes how many others it meets: by counting rows of what it wrote itself."""
    assert max(max(met) for met in race(5, meet, 3)) <= 3


@pytest.mark.processes
def test_negative_twin_counter_of_a_dead_holder_stays():
    """The negative twin: a counter, as Redis recipes have it, drifts when a holder dies."""
    Counter.objects.create(name="permits", value=0)
    with process(hold_counted) as holder:
        assert holder.receive() == "held"
        holder.kill()
    assert Counter.objects.get(name="permits").value == 1  # for ever


def hold(channel, ttl):
    with semaphore(1, ttl=ttl) as permit:
        channel.send(permit.slot)
        channel.receive()


def hold_counted(channel):
    Counter.objects.filter(name="permits").update(value=1)
    try:
        channel.send("held")
        channel.receive()
    finally:
        Counter.objects.filter(name="permits").update(value=0)


def try_once(_number):
    try:
        with semaphore(1):
            return "held"
    except LockTimeout:
        return "refused"


def wait_fair(channel, units):
    channel.send("waits")
    try:
        with semaphore(2, units=units, fair=True, timeout=60):
            return "held"
    except LockTimeout:
        return "refused"


def meet(number, permits):
    met = []
    for turn in range(20):
        with fenced_semaphore("api", permits=permits, ttl=30, timeout=None) as permit:
            with permit.guard():
                Counter.objects.create(name=f"{number}:{turn}")
            met.append(Counter.objects.count())
            with permit.guard():
                Counter.objects.filter(name=f"{number}:{turn}").delete()
    return met


def _tickets(observer):
    return observer.execute("SELECT count(*) FROM django_dblock_fencedticket").fetchone()[0]


def test_timeout_ends_the_wait():
    with semaphore(1):
        started = time.monotonic()
        with pytest.raises(LockTimeout) as caught, semaphore(1, timeout=0.05):
            pass
    assert caught.value.waited >= 0.05
    assert time.monotonic() - started < 30


class TestAnswers:
    def test_endlessly_lost_race_ends_in_a_timeout(self, monkeypatch):
        monkeypatch.setattr(store, "durable", lambda *_: ([], True))
        with pytest.raises(LockTimeout, match="faster"):
            semaphore(timeout=0.01).__enter__()

    @pytest.mark.parametrize(
        "take",
        [
            lambda: semaphore().__enter__(),
            lambda: fenced_rwlock("api").read(ttl=30).__enter__(),
            lambda: fenced_rwlock("api").write(ttl=30).__enter__(),
            lambda: next(iter(leadership("api", ttl=30))),
            lambda: partitions("api", count=2, ttl=30).__enter__(),
        ],
        ids=["permit", "read", "write", "term", "partition"],
    )
    def test_cockroachdb_is_refused_by_name(self, take, cockroach):
        with pytest.raises(UnsupportedDatabase, match="CockroachDB"):
            take()
        assert not FencedLock.objects.exists()

    def test_unconfirmed_commit_does_not_acquire(self, monkeypatch):
        real = store.durable
        monkeypatch.setattr(store, "durable", lambda *a: real(*a) and False)
        with pytest.raises(NotReplicated):
            semaphore(timeout=5).__enter__()
        assert held(NAME) == []
