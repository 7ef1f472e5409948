"""hold_lease() and take_away(): leases of another holder, and lost leases."""

import threading

import pytest
from django.db import connection, transaction
from django.test import TestCase

from django_dblock import (
    LockLost,
    LockTimeout,
    OpenTransaction,
    SelfDeadlock,
    advisory_lock,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    leader,
    leadership,
    partitions,
)
from django_dblock.inspect import fenced_leases
from django_dblock.testing import hold_lease as holding
from django_dblock.testing import take_away
from tests.app.models import Counter

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


def semaphore(**options):
    return fenced_semaphore("api", permits=2, ttl=30, **options)


def write():
    return fenced_rwlock("catalogue").write(ttl=30)


class InATestCase(TestCase):
    """What is held is in the test's transaction, and is gone with it."""

    def test_semaphore_without_a_free_permit_is_busy(self):
        with holding(semaphore(units=2)):
            with pytest.raises(LockTimeout), semaphore():
                self.fail("a third permit")
        with semaphore(units=2) as permit:
            assert permit.slots == (0, 1)

    def test_held_read_write_lock_is_busy(self):
        with holding(write()), pytest.raises(LockTimeout), write():
            self.fail("two writers")
        with holding(fenced_rwlock("catalogue").read(ttl=30)):
            with pytest.raises(LockTimeout), write():
                self.fail("a writer beside a reader")

    def test_negative_twin_without_the_helper_deadlocks(self):
        """The twin of the test above."""
        with write(), pytest.raises(SelfDeadlock), write():
            self.fail("two writers")

    def test_held_leadership_is_anothers(self):
        with holding(leadership("sync", ttl=30)) as other:
            assert leader("sync").token == other.lease.token
        assert leader("sync") is None

    def test_leadership_that_is_stopped_is_refused(self):
        stop = threading.Event()
        stop.set()
        with pytest.raises(ValueError, match="stop") as caught:
            holding(leadership("sync", ttl=30, stop=stop)).__enter__()
        assert caught.value.__cause__ is None
        assert leader("sync") is None

    def test_leadership_is_held_again_after_its_release(self):
        other = holding(leadership("sync", ttl=30))
        tokens = []
        for _ in range(2):
            with other:
                tokens.append(leader("sync").token)
            assert leader("sync") is None
        assert tokens[0] < tokens[1]

    def test_held_partitions_are_another_workers(self):
        with holding(partitions("outbox", count=4, ttl=30)) as other:
            assert other.lease.numbers == (0, 1, 2, 3)
            assert other.waiters() == []
            with pytest.raises(ValueError, match="other workers split it into 4 partitions"):
                partitions("outbox", count=5, ttl=30).__enter__()
            with partitions("outbox", count=4, ttl=30) as mine:
                other.lease.balance()
                mine.balance()
                assert (len(mine), len(other.lease)) == (2, 2)

    def test_inner_transaction_is_refused(self):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            holding(semaphore()).__enter__()

    def test_guard_of_a_lost_lease_commits_nothing(self):
        with pytest.raises(LockLost), fenced_lock("nightly", ttl=30) as lock:
            take_away(lock)
            assert not lock.lost
            with lock.guard():
                Counter.objects.create(name="stale")
        assert not Counter.objects.exists()

    def test_taking_away_a_permit_loses_every_unit(self):
        with pytest.raises(LockLost), semaphore(units=2) as permit:
            take_away(permit)
            assert fenced_leases() == []
            with semaphore(units=2):
                pass

    def test_leader_campaigns_again_after_a_loss(self):
        tokens = []
        for term in leadership("sync", ttl=30, stop=lambda: len(tokens) == 2):
            with term:
                tokens.append(term.token)
                take_away(term, noticed=True)
                term.check()
                self.fail("it went on")
        assert tokens[0] < tokens[1]

    def test_lost_partition_ends_its_block(self):
        with partitions("outbox", count=1, ttl=30) as mine:
            lost = []
            for part in mine:
                lost.append(part.number)
                take_away(part)
                with part, part.guard():
                    self.fail("it was guarded")
            assert lost == [0]
            mine.balance()
            assert mine.numbers == (0,)


def test_lease_is_held_until_released_or_taken_away():
    held = holding(semaphore(units=2))
    with held, held:  # entering twice acquires once
        assert len(fenced_leases()) == 2
    assert fenced_leases() == []
    held.release()
    with holding(fenced_lock("nightly", ttl=30)) as held:
        take_away(held.lease)
        with fenced_lock("nightly", ttl=30):
            held.release()
            assert len(fenced_leases()) == 1


@pytest.mark.parametrize("block", ["nightly", advisory_lock("nightly")], ids=["key", "advisory"])
def test_object_without_a_lease_is_refused(block):
    with pytest.raises(TypeError, match=r"takes a block that holds a lease.*use hold_lock\(\)"):
        holding(block)


def test_fixture_holds_until_release_or_end(hold_lease):
    busy = hold_lease(write())
    assert [lease.role for lease in fenced_leases()] == ["writer"]
    busy.release()
    assert fenced_leases() == []
    hold_lease(write())


def test_waiters_are_counted(hold_lease):
    busy = hold_lease(semaphore(units=2))
    got = []

    def wait():
        with semaphore(units=2, timeout=30, fair=True):
            got.append("a permit")
        connection.close()

    with pytest.raises(AssertionError, match=r"after 0 s 0 wait for it, not 1"):
        busy.until_waited_for(within=0)
    waiter = threading.Thread(target=wait)
    waiter.start()
    [owner] = busy.until_waited_for()
    assert owner.endswith("(wait)")
    assert got == []
    busy.release()
    waiter.join()
    assert got == ["a permit"]
