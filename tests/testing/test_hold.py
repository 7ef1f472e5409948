"""hold_lock(): another connection holds a lock."""

import threading
import unittest

import pytest
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, override_settings

from django_dblock import LockTimeout, advisory_lock, try_advisory_lock
from django_dblock.inspect import advisory_locks
from django_dblock.testing import hold_lock as holding
from tests.helpers import observe

pytestmark = pytest.mark.server


class InATestCase(TestCase):
    """A TestCase wraps all of it in a transaction; the other connection is outside of that."""

    def test_key_is_busy_only_while_held(self):
        with holding("inventory", "sku-1"):
            with pytest.raises(LockTimeout), advisory_lock("inventory", "sku-1", timeout=0):
                self.fail("two holders")
            assert try_advisory_lock("inventory", "sku-2")
        assert try_advisory_lock("inventory", "sku-1")

    def test_own_locks_are_an_error_instead_of_a_wait(self):
        with advisory_lock("a"):
            pass  # its block has ended, the lock has not
        with pytest.raises(RuntimeError, match="a is locked by this test's own transaction"):
            holding("a").__enter__()
        observe.until(lambda: len(advisory_locks()) == 1, "only the test's own lock is left")

    def test_shared_beside_the_tests_own_shared_lock(self):
        with advisory_lock("a", shared=True), holding("a", shared=True):
            assert [lock.shared for lock in advisory_locks()] == [True, True]


@pytest.mark.django_db(transaction=True)
def test_simple_testcase_gets_no_holder():
    """Its watch must know of the second connection, too, which could reach the real database."""

    class WithoutADatabase(SimpleTestCase):
        def test(self):
            holding("a").__enter__()

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(WithoutADatabase).run(result)
    [(_, error)] = result.failures
    assert "DatabaseOperationForbidden" in error


def test_unmarked_test_gets_no_holder(hold_lock):
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        hold_lock("a")


@pytest.mark.django_db
def test_fixture_holds_until_release_or_end(hold_lock):
    first, second = hold_lock("a"), hold_lock("b", shared=True)
    assert len({first.pid, second.pid, connection.connection.info.backend_pid}) == 3
    assert not try_advisory_lock("a")
    assert not try_advisory_lock("b")
    assert try_advisory_lock("b", shared=True)
    first.release()
    first.release()
    assert try_advisory_lock("a")
    with hold_lock("c"):
        assert not try_advisory_lock("c")
    assert try_advisory_lock("c")
    with pytest.raises(RuntimeError, match="c is not held"):
        _ = holding("c").pid


@pytest.mark.django_db(transaction=True)
def test_busy_key_is_an_error(hold_lock):
    hold_lock("a")
    with pytest.raises(LockTimeout):
        hold_lock("a", timeout=0)
    with pytest.raises(LockTimeout):
        hold_lock("a", timeout=0.01)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_using_holds_on_another_alias(hold_lock):
    hold_lock("a", using="other")
    with advisory_lock("a", timeout=0):
        pass
    with pytest.raises(LockTimeout), advisory_lock("a", using="other", timeout=0):
        pass


@pytest.mark.django_db(transaction=True)
@override_settings(DBLOCK_NAMESPACE="shop")
def test_key_has_the_projects_namespace(hold_lock):
    hold_lock("a")
    with pytest.raises(LockTimeout), advisory_lock("a", timeout=0):
        pass
    assert [lock.name for lock in advisory_locks()] == ["a"]


@pytest.mark.django_db(transaction=True)
def test_wait_for_waiters_orders_a_race(hold_lock):
    busy = hold_lock("a")
    got_in = threading.Event()

    def wait():
        with advisory_lock("a"):
            got_in.set()
        connection.close()

    waiter = threading.Thread(target=wait)
    waiter.start()
    [pid] = busy.until_waited_for()
    assert pid in {lock.pid for lock in advisory_locks() if not lock.granted}
    assert not got_in.is_set()
    with pytest.raises(AssertionError, match=r"a: after 0.02 s 1 connection\(s\) wait for it, not"):
        busy.until_waited_for(2, within=0.02)
    busy.release()
    waiter.join(60)
    assert got_in.is_set()


@pytest.mark.django_db(transaction=True)
def test_holder_with_an_ended_connection_is_released(hold_lock, observer):
    busy = hold_lock("a")
    observer.execute("SELECT pg_terminate_backend(%s, 5000)", [busy.pid])
    busy.release()
    with transaction.atomic():
        assert try_advisory_lock("a")
