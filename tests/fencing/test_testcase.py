"""Inside Django's TestCase, which is one transaction: exempt, as atomic(durable=True) is."""

import pytest
from django.db import connection, transaction
from django.test import TestCase

from django_dblock import FencedLock, LockTimeout, OpenTransaction, fenced_lock
from django_dblock.fencing.heartbeat import heartbeat
from tests.app.models import Account


class InATestCase(TestCase):
    def test_a_lease_can_be_taken_renewed_guarded_and_given_back(self):
        with self.assertNumQueries(5), fenced_lock("a", ttl=30) as lock:
            assert connection.in_atomic_block
            lock.renew()
            with pytest.raises(LockTimeout), fenced_lock("a", ttl=30):
                pass
        with fenced_lock("a", ttl=30) as lock, lock.guard():
            Account(name="a").save_fenced(lock)

    def test_no_other_connection_sees_it_so_nobody_renews_it(self):
        with fenced_lock("a", ttl=30):
            assert list(heartbeat._due.values()) == [None]

    def test_the_next_test_finds_nothing(self):
        assert not FencedLock.objects.exists()

    def test_a_transaction_of_the_code_that_is_tested_is_refused_as_ever(self):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            fenced_lock("a", ttl=30).__enter__()
