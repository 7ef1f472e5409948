"""Inside Django's TestCase, which is one transaction: the lock joins it, as in any other."""

import unittest

import pytest
from django.db import connection
from django.test import TestCase

from django_dblock import advisory_lock, try_advisory_lock
from django_dblock.inspect import advisory_locks as inspect_locks


class InATestCase(TestCase):
    def test_block_joins_the_tests_transaction(self):
        with self.assertNumQueries(1), advisory_lock("a"):
            pass
        assert [lock.name for lock in inspect_locks()] == ["a"], "until the test's end"

    def test_lock_can_be_tried_in_the_tests_transaction(self):
        assert connection.in_atomic_block
        assert try_advisory_lock("a")


@pytest.mark.django_db(transaction=True)
def test_next_test_finds_nothing_locked():
    class Locking(TestCase):
        def test(self):
            assert inspect_locks() == []
            with advisory_lock("a"):
                pass
            assert len(inspect_locks()) == 1

    result = unittest.TestSuite([Locking("test"), Locking("test")]).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])
