"""Inside Django's TestCase, which is one transaction: exempt, as atomic(durable=True) is."""

import pytest
from django.db import connection, transaction
from django.test import TestCase

from django_dblock import FencedLock, LockTimeout, OpenTransaction, fenced_lock
from django_dblock.fencing.heartbeat import heartbeat
from tests.app.models import Account


class InATestCase(TestCase):
    def test_lease_works_in_a_testcase(self):
        with self.assertNumQueries(5), fenced_lock("a", ttl=30) as lock:
            assert connection.in_atomic_block
            lock.renew()
            with pytest.raises(LockTimeout), fenced_lock("a", ttl=30):
                pass
        with fenced_lock("a", ttl=30) as lock, lock.guard():
            Account(name="a").save_fenced(lock)

    def test_lease_in_a_testcase_has_no_heartbeat(self):
        with fenced_lock("a", ttl=30):
            assert list(heartbeat._due.values()) == [None]

    def test_lease_is_rolled_back_after_the_test(self):
        assert not FencedLock.objects.exists()

    def test_inner_transaction_is_refused(self):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            fenced_lock("a", ttl=30).__enter__()
