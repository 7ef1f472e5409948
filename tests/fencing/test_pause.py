"""Pauses: a holder is frozen past its lease, another takes over, and the first wakes up.

The holder is a process that SIGSTOP freezes; the test sees its lease expire by the server's clock,
takes the lock, and lets it go on. Nothing is ordered by sleeping.
"""

import signal
from contextlib import contextmanager, suppress

import pytest
from django.db import transaction

from django_dblock import LockLost, LockTimeout, StaleFence, fenced_lock
from tests.app.models import Account
from tests.fencing.helpers import NAME, expire, until_expired
from tests.helpers.processes import process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]


@contextmanager
def stolen_from(work, observer):
    """Freeze a holder that has said "ready", take the lock, and yield (lease, holder)."""
    with process(hold, work) as holder:
        assert holder.receive() == "ready"
        holder.signal(signal.SIGSTOP)
        until_expired(observer)
        with fenced_lock(NAME, ttl=30) as lock:
            yield lock, holder


def resume(holder):
    holder.signal(signal.SIGCONT)
    holder.send("go on")
    return holder.receive()


def hold(channel, work):
    block = fenced_lock(NAME, ttl=0.9)
    lock = block.__enter__()
    return work(channel, lock, block)


def pause(channel):
    channel.send("ready")
    channel.receive()


def told(function):
    try:
        function()
    except LockLost as error:
        return type(error).__name__
    return "no error"


def renewing(channel, lock, _block):
    pause(channel)
    return told(lock.renew)


def releasing(channel, lock, _block):
    pause(channel)
    return lock.release(), lock.lost


def leaving(channel, lock, block):
    pause(channel)
    return told(lambda: block.__exit__(None, None, None))


def checking(channel, lock, _block):
    pause(channel)
    return told(lock.check)


def guarding(channel, lock, _block):
    pause(channel)

    def work():
        with lock.guard():
            Account.objects.update(balance=1)

    return told(work)


def unaware_guarding(channel, lock, _block):
    """Its clock says nothing (it was frozen between check and statement): the table decides."""
    pause(channel)
    lock.trust._deadline += 1000

    def work():
        with lock.guard():
            Account.objects.update(balance=1)

    return told(work), lock.lost


def unaware_renewing(channel, lock, _block):
    pause(channel)
    lock.trust._deadline += 1000
    return told(lock.renew), lock.lost


def saving(channel, lock, _block):
    account = Account.objects.get()
    pause(channel)
    account.balance = 1
    return told(lambda: account.save_fenced(lock))


def unaware_saving(channel, lock, _block):
    account = Account.objects.get()
    pause(channel)
    lock.trust._deadline += 1000
    account.balance = 1
    return told(lambda: account.save_fenced(lock)), account.fence_token


def unaware_updating(channel, lock, _block):
    pause(channel)
    lock.trust._deadline += 1000
    return told(lambda: Account.objects.fenced(lock).update(balance=1))


def unguarded(channel, lock, _block):
    """The negative twin: plain expiry, as other locks have it."""
    account = Account.objects.get()
    pause(channel)
    account.balance = 1
    account.save()
    return told(lock.check)


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (renewing, "LockLost"),
        (unaware_renewing, ("LockLost", True)),
        (releasing, (False, True)),
        (leaving, "LockLost"),
        (checking, "LockLost"),
        (guarding, "LockLost"),
        (unaware_guarding, ("LockLost", True)),
        (saving, "StaleFence"),
        (unaware_saving, ("StaleFence", 0)),
        (unaware_updating, "StaleFence"),
    ],
)
def test_frozen_holder_changes_nothing(work, outcome, observer):
    Account.objects.create(name="a", balance=100)
    with stolen_from(work, observer) as (lock, holder):
        assert resume(holder) == outcome
        assert Account.objects.get().balance == 100
        lock.renew()


def test_negative_twin_unguarded_write_is_committed(observer):
    Account.objects.create(name="a", balance=100)
    with stolen_from(unguarded, observer) as (lock, holder):
        Account.objects.update(balance=200)
        assert resume(holder) == "LockLost", "it learns of it too late"
        assert Account.objects.get().balance == 1, "the newer holder's write is lost"
        lock.check()


def in_a_guard(channel, lock, _block):
    with lock.guard():
        Account.objects.update(balance=1)
        pause(channel)
    return "committed"


def test_frozen_guard_delays_the_next_grant(observer):
    """The lease has expired, and still nobody is granted it: so the commit is not stale."""
    Account.objects.create(name="a", balance=100)
    with process(hold, in_a_guard) as holder:
        holder.receive()
        holder.signal(signal.SIGSTOP)
        until_expired(observer)
        with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
            pass
        assert resume(holder) == "committed"
        with fenced_lock(NAME, ttl=30):
            assert Account.objects.get().balance == 1


def in_an_impatient_guard(channel, lock, _block):
    with suppress(Exception), lock.guard(idle_timeout=1):
        Account.objects.update(balance=1)
        channel.send("ready")
        channel.receive()
    return "over"


def test_guard_frozen_for_too_long_is_ended_by_the_server(observer):
    Account.objects.create(name="a", balance=100)
    with process(hold, in_an_impatient_guard) as holder:
        assert holder.receive() == "ready"
        holder.signal(signal.SIGSTOP)
        until_expired(observer)
        with fenced_lock(NAME, ttl=30, timeout=20):
            assert Account.objects.get().balance == 100
            assert resume(holder) == "over"
            assert Account.objects.get().balance == 100


def in_an_on_commit_hook(guard):
    def work(channel, lock, _block):
        outcome = []

        def hook():
            pause(channel)
            lock.trust._deadline += 1000
            outcome.append(told(write))

        def write():
            if guard:
                with lock.guard():
                    Account.objects.update(balance=1)
            else:
                Account.objects.update(balance=1)

        with lock.guard():
            transaction.on_commit(hook)
        return outcome

    return work


def guarded_hook(*arguments):
    return in_an_on_commit_hook(guard=True)(*arguments)


def unguarded_hook(*arguments):
    return in_an_on_commit_hook(guard=False)(*arguments)


def test_on_commit_hook_needs_its_own_guard(observer):
    Account.objects.create(name="a", balance=100)
    with stolen_from(guarded_hook, observer) as (_, holder):
        assert resume(holder) == ["LockLost"]
        assert Account.objects.get().balance == 100


def test_negative_twin_unguarded_on_commit_hook_is_stale(observer):
    Account.objects.create(name="a", balance=100)
    with stolen_from(unguarded_hook, observer) as (_, holder):
        assert resume(holder) == ["no error"]
        assert Account.objects.get().balance == 1


def test_negative_twin_comparing_the_column_loses_an_update(observer):
    """The old holder writes after the new one has read and before it writes: an addition is lost.

    That is what other fencing is made of. Step by step, with the column and without the guard.
    """
    Account.objects.create(name="a", balance=100)

    def add(account, amount, token):
        return Account.objects.filter(pk=account.pk, fence_token__lte=token).update(
            balance=account.balance + amount, fence_token=token
        )

    with suppress(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as old:
        read_by_old = Account.objects.get()
        expire(observer)
        with fenced_lock(NAME, ttl=30) as new:
            read_by_new = Account.objects.get()
            assert add(read_by_old, 10, old.token) == 1, "the column has no objection"
            assert add(read_by_new, 1, new.token) == 1
    assert Account.objects.get().balance == 101, "111 would be right"


def test_guard_loses_nothing_in_the_same_steps(observer):
    Account.objects.create(name="a", balance=100)
    with suppress(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as old:
        read_by_old = Account.objects.get()
        expire(observer)
        with fenced_lock(NAME, ttl=30) as new:
            read_by_new = Account.objects.get()
            read_by_old.balance += 10
            with pytest.raises(StaleFence):
                read_by_old.save_fenced(old)
            read_by_new.balance += 1
            read_by_new.save_fenced(new)
    assert Account.objects.get().balance == 101, "and the old holder knows that it wrote nothing"
