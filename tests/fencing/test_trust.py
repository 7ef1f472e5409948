"""How long a holder trusts its lease, with a stub clock and scripted results."""

from datetime import UTC, datetime

import pytest
from django.db import OperationalError

from django_dblock import LockLost, fenced_lock
from django_dblock.core import clock as clock_of_the_package
from django_dblock.core.application_name import named
from django_dblock.fencing import deadline as trust
from django_dblock.fencing import store as table
from django_dblock.fencing.deadline import MARGIN, Trust
from django_dblock.fencing.store import Grant, Place, Renewal
from tests.fencing.helpers import NAME

EXPIRY = datetime(2000, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(trust, "now", found)
    return found


@pytest.fixture
def lost():
    return []


@pytest.fixture
def held(clock, lost):
    place = Place(named((NAME,)), NAME, "default")
    return Trust(place, Grant(1, EXPIRY), ttl=10, before=clock.time, when_lost=lost.append)


def test_deadline_counts_from_before_the_request(clock):
    clock.time = 1004.0  # the answer took four seconds
    place = Place(named((NAME,)), NAME, "default")
    held = Trust(place, Grant(1, EXPIRY), ttl=10, before=1000.0, when_lost=print)
    assert held.remaining == pytest.approx(6 - 10 * MARGIN)


def test_lease_is_lost_at_the_deadline(clock, held, lost):
    clock.time += 10 * (1 - MARGIN) - 0.001
    assert held.reason is None
    clock.time += 0.002
    assert "no renewal was confirmed in time" in held.reason
    assert held.remaining == 0
    clock.time -= 5
    assert held.reason is not None
    assert len(lost) == 1, "told once"


def test_renewal_extends_from_before_the_request(clock, held):
    clock.time = 1008.0
    held.extend(1003.0, 10, EXPIRY)
    assert held.remaining == pytest.approx(5 - 10 * MARGIN)


def test_slow_successful_renewal_does_not_extend_trust(clock, held, lost):
    """It arrives after the deadline: somebody may have been told of the loss already."""
    clock.time = 1012.0
    held.extend(1009.0, 10, EXPIRY)
    assert held.reason is not None
    assert held.remaining == 0
    assert len(lost) == 1


def test_reordered_results_never_shorten_trust(clock, held):
    clock.time = 1006.0
    held.extend(1005.0, 10, EXPIRY.replace(minute=2))
    held.extend(1003.0, 10, EXPIRY.replace(minute=1))
    assert held.remaining == pytest.approx(9 - 10 * MARGIN)
    assert held.expires_at.minute == 2


def test_released_lease_is_never_lost(clock, held, lost):
    held.end()
    clock.time += 100
    assert held.reason is None
    assert held.ended
    assert held.remaining == 0
    assert lost == []


def test_forked_child_holds_no_lease(held, monkeypatch, lost):
    monkeypatch.setattr(trust.os, "getpid", lambda: -1)
    assert "forked" in held.reason
    assert held.remaining == 0
    assert lost == [], "it is the parent's to tell"


def test_clock_is_monotonic():
    assert trust.now is clock_of_the_package.monotonic


class Answers:
    """A database whose answers are written down beforehand."""

    def __init__(self, clock):
        self.clock = clock
        self.script = []

    def acquire(self, *_):
        return Grant(7, EXPIRY)

    def renew(self, *_):
        seconds, answer = self.script.pop(0)
        self.clock.time += seconds
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(self, *_, **__):
        return True


@pytest.fixture
def answers(clock, monkeypatch):
    from django_dblock.fencing import acquire as waiting
    from django_dblock.fencing import lease

    found = Answers(clock)
    for name in ("acquire", "renew", "release"):
        monkeypatch.setattr(table, name, getattr(found, name))
    monkeypatch.setattr(lease, "now", clock)
    monkeypatch.setattr(waiting, "monotonic", clock)
    return found


@pytest.mark.django_db(transaction=True)
class TestScripted:
    def test_failed_renewal_before_the_deadline_is_no_loss(self, answers, clock):
        answers.script = [(3, OperationalError()), (3, Renewal(EXPIRY, ours=True))]
        with fenced_lock(NAME, ttl=10, heartbeat=False) as lock:
            with pytest.raises(OperationalError):
                lock.renew()
            assert not lock.lost
            lock.renew()
            clock.time += 6
            assert not lock.lost

    def test_failed_renewal_at_the_deadline_is_a_loss(self, answers):
        answers.script = [(9.9, OperationalError())]
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=10, heartbeat=False) as lock:
            with pytest.raises(OperationalError):
                lock.renew()
            with pytest.raises(LockLost, match="no renewal was confirmed in time"):
                lock.check()
            with pytest.raises(LockLost):
                lock.renew()
            with pytest.raises(LockLost):
                lock.guard()
            assert answers.script == [], "what is lost is not asked for again"

    def test_missing_row_is_a_loss_at_once(self, answers):
        answers.script = [(0, Renewal(None, ours=False))]
        told = []
        block = fenced_lock(NAME, ttl=10, heartbeat=False, on_lost=told.append)
        with pytest.raises(LockLost), block as lock:
            with pytest.raises(LockLost, match="another holder was granted the lease"):
                lock.renew()
            assert told == [lock]

    def test_slow_success_is_a_loss(self, answers):
        answers.script = [(11, Renewal(EXPIRY, ours=True))]
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=10, heartbeat=False) as lock:
            with pytest.raises(LockLost):
                lock.renew()

    def test_locked_row_is_retried_until_the_deadline(self, answers):
        answers.script = [(4, Renewal(None, ours=True)), (6, Renewal(None, ours=True))]
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=10, heartbeat=False) as lock:
            with pytest.raises(LockLost):
                lock.renew()
