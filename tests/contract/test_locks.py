"""The contract of every kind of lock: one suite, a row per kind.

A new kind of lock is one more entry in KINDS.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction

from django_dblock import (
    DblockError,
    LockTimeout,
    OpenTransaction,
    advisory_lock,
    advisory_locks,
    advisory_semaphore,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    signals,
)
from tests.app.models import Counter
from tests.helpers import observe
from tests.helpers.processes import process, race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]


@dataclass(frozen=True)
class Kind:
    """How to take this kind of lock on one key, and how a test sees what it does.

    Attributes:
        refusal: what it raises in a transaction of the caller's while somebody else has the lock.
        until_waits: waits until somebody else is seen to wait for the lock.
        released: what ``lock_released`` says besides, when all went well.
        waits_for_nobody: whether a lock that is free is had after exactly no time.
    """

    name: str
    take: Callable[..., AbstractContextManager[Any]]
    refusal: type[DblockError] = LockTimeout
    until_waits: Callable[[Any], None] = observe.until_blocked
    released: tuple[str, bool] = ("committed", True)
    waits_for_nobody: bool = True

    def __call__(self, key: str, timeout: float | None = 0) -> AbstractContextManager[Any]:
        return self.take(key, timeout=timeout)

    def __str__(self) -> str:
        return self.name


def several(key: str, timeout: float | None) -> AbstractContextManager[Any]:
    return advisory_locks([(key, "other"), key], timeout=timeout)


def lease(key: str, timeout: float | None) -> AbstractContextManager[Any]:
    return fenced_lock(key, ttl=3, timeout=timeout)  # of a dead holder, too


def permit(key: str, timeout: float | None) -> AbstractContextManager[Any]:
    return fenced_semaphore(key, permits=1, ttl=3, timeout=timeout)


def advisory_permit(key: str, timeout: float | None) -> AbstractContextManager[Any]:
    return advisory_semaphore(key, permits=1, timeout=timeout)


def writing(key: str, timeout: float | None) -> AbstractContextManager[Any]:
    return fenced_rwlock(key).write(ttl=3, timeout=timeout)


def until_queued(observer: Any) -> None:
    """A waiter takes its place in the queue after a few tries."""
    queued = "SELECT FROM django_dblock_fencedticket"
    observe.until(lambda: observer.execute(queued).fetchone() is not None, "somebody waits")


KINDS = [
    Kind("advisory_lock", advisory_lock),
    Kind("advisory_locks", several),
    Kind(
        "fenced_lock",
        lease,
        refusal=OpenTransaction,
        until_waits=until_queued,
        released=("lost", False),
        waits_for_nobody=False,
    ),
    Kind(
        "fenced_rwlock.write",
        writing,
        refusal=OpenTransaction,
        until_waits=until_queued,
        released=("lost", False),
        waits_for_nobody=False,
    ),
    Kind("advisory_semaphore", advisory_permit),
    Kind(
        "fenced_semaphore",
        permit,
        refusal=OpenTransaction,
        until_waits=until_queued,
        released=("lost", False),
        waits_for_nobody=False,
    ),
]


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return request.param


def hold(channel, kind, key):
    with kind(key):
        channel.send("held")
        channel.receive()
    channel.send("left")


def attempt(_number, kind, key, timeout):
    try:
        with kind(key, timeout):
            return "held"
    except LockTimeout:
        return "refused"


def read_modify_write(_number, kind):
    for _ in range(25):
        with kind("contract", 60):
            counter = Counter.objects.get(name="contract")
            counter.value += 1
            counter.save()


def test_one_holder_at_a_time(kind):
    with process(hold, kind, "a") as holder:
        assert holder.receive() == "held"
        with pytest.raises(LockTimeout), kind("a"):
            pytest.fail("two holders")
        holder.send("leave")
        assert holder.receive() == "left"
        with kind("a"):
            pass


def test_other_keys_stay_free(kind):
    with process(hold, kind, "a") as holder:
        holder.receive()
        with kind("b"):
            pass
        holder.send("leave")


def test_all_contenders_are_refused_while_one_holds(kind):
    with kind("a"):
        assert race(3, attempt, kind, "a", 0) == ["refused"] * 3


def test_waiter_acquires_when_holder_leaves(kind, observer):
    with process(hold, kind, "a") as holder:
        holder.receive()
        with process(attempt, kind, "a", 30) as waiter:
            kind.until_waits(observer)
            holder.send("leave")
            assert waiter.receive() == "held"


def test_mutual_exclusion_under_load(kind):
    Counter.objects.create(name="contract")
    race(4, read_modify_write, kind)
    assert Counter.objects.get().value == 100


def test_dead_holder_frees_the_lock(kind):
    with process(hold, kind, "a") as holder:
        holder.receive()
        holder.kill()
        with kind("a", 30):
            pass


def test_error_in_block_propagates_and_releases(kind, observer):
    with pytest.raises(ZeroDivisionError), kind("a"):
        raise ZeroDivisionError
    assert observe.locks(observer) == []
    with kind("a"):
        pass


def test_one_object_can_be_entered_repeatedly(kind):
    block = kind("a")
    for _ in range(3):
        with block:
            pass


def test_timeout_is_a_timeout_error_that_names_the_key(kind):
    with process(hold, kind, "sku-1") as holder:
        holder.receive()
        with pytest.raises(DblockError) as caught, kind("sku-1"):
            pass
        assert isinstance(caught.value, TimeoutError)
        assert "sku-1" in str(caught.value)
        assert "dblock list" in str(caught.value)
        holder.send("leave")


def test_failed_entry_leaves_transaction_usable(kind):
    with process(hold, kind, "a") as holder:
        holder.receive()
        with transaction.atomic():
            Counter.objects.create(name="before")
            with pytest.raises(kind.refusal), kind("a"):
                pass
            Counter.objects.create(name="after")
        holder.send("leave")
    assert Counter.objects.count() == 2
    assert not connection.in_atomic_block


def test_signals_report_acquire_release_and_timeout(kind):
    """Signals: acquired, released, timed out; each with the key, the alias and the seconds."""
    heard = []

    def hear(signal, **data):
        heard.append((signal, data))

    watched = [signals.lock_acquired, signals.lock_released, signals.lock_timeout]
    for signal in watched:
        signal.connect(hear)
    try:
        with kind("a"):
            pass
        with process(hold, kind, "a") as holder:
            holder.receive()
            with pytest.raises(LockTimeout), kind("a", 0.01):
                pass
            holder.send("leave")
    finally:
        for signal in watched:
            signal.disconnect(hear)
    assert [signal for signal, _ in heard] == watched
    assert all(("a",) in data["keys"] and data["using"] == "default" for _, data in heard)
    acquired, released, timed_out = (data for _, data in heard)
    assert acquired["waited"] == 0.0 or not kind.waits_for_nobody
    assert released["held"] > 0
    assert kind.released in released.items()
    assert timed_out["waited"] >= 0.01


def test_error_of_a_signal_receiver_is_swallowed(kind):
    def fail(**_):
        raise ZeroDivisionError

    signals.lock_acquired.connect(fail)
    try:
        with kind("a"):
            pass
    finally:
        signals.lock_acquired.disconnect(fail)
