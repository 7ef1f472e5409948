"""Inside Django's TestCase, which is one transaction: exempt, as atomic(durable=True) is."""

import unittest

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
            assert list(heartbeat.of("default")._due.values()) == [None]

    def test_inner_transaction_is_refused(self):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            fenced_lock("a", ttl=30).__enter__()


@pytest.mark.django_db(transaction=True)
def test_lease_of_a_testcase_is_rolled_back():
    class Holding(TestCase):
        def test(self):
            with fenced_lock("a", ttl=30):
                assert FencedLock.objects.exists()

    result = unittest.TestSuite([Holding("test")]).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert not FencedLock.objects.exists()
