"""Inside Django's TestCase, which is one transaction: the lock joins it, as in any other."""

from django.db import connection
from django.test import TestCase

from django_dblock import advisory_lock, try_advisory_lock
from django_dblock.inspect import advisory_locks as inspect_locks


class InATestCase(TestCase):
    def test_block_joins_the_tests_transaction(self):
        with self.assertNumQueries(1), advisory_lock("a"):
            pass
        assert [lock.name for lock in inspect_locks()] == ["a"], "until the test's end"

    def test_next_test_finds_nothing_locked(self):
        assert inspect_locks() == []
        assert try_advisory_lock("a")
        assert connection.in_atomic_block
