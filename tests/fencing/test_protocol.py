"""The protocol, statement by statement."""

import pytest
from django_dblock import FencedLock, LockTimeout, fenced_lock

pytestmark = pytest.mark.django_db(transaction=True)


def test_acquire_renew_release(statements):
    with statements() as sent:
        with fenced_lock("nightly-sync", ttl=30) as lock:
            assert len(sent) == 1
            lock.renew()
            assert len(sent) == 2
            with pytest.raises(LockTimeout), fenced_lock("nightly-sync", ttl=30):
                pass
            with lock.guard():
                pass
            lock.check()
    print(*[q["sql"][:50] for q in sent], sep="\n")
    row = FencedLock.objects.get(name="nightly-sync")
    assert row.token == lock.token
    assert not lock.lost


def test_save(statements):
    from tests.app.models import Account

    a = Account.objects.create(name="a")
    with fenced_lock("nightly-sync", ttl=30) as lock:
        a.balance = 5
        with statements() as sent:
            a.save_fenced(lock)
        print(*[q["sql"] for q in sent], sep="\n")
        assert Account.objects.fenced(lock).update(balance=6) == 1
