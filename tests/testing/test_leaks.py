"""assert_no_locks(): leftovers are reported."""

import threading

import pytest
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase, override_settings

from django_dblock import advisory_lock, fenced_lock
from django_dblock.testing import assert_no_locks as nothing_is_locked

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


class InATransactionTestCase(TransactionTestCase):
    def test_no_leak_passes(self):
        with advisory_lock("a"), pytest.raises(RuntimeError, match="inside a transaction"):
            nothing_is_locked()
        nothing_is_locked()


class InATestCase(TestCase):
    def test_testcase_is_refused_with_a_reason(self):
        with pytest.raises(RuntimeError, match=r"assert_no_locks\(\).*TransactionTestCase"):
            nothing_is_locked()


def test_holders_and_waiters_are_reported(assert_no_locks, hold_lock):
    busy = hold_lock("inventory", "sku-1")

    def wait():
        with advisory_lock("inventory", "sku-1"):
            pass
        connection.close()

    waiter = threading.Thread(target=wait)
    waiter.start()
    [pid] = busy.until_waited_for()
    with pytest.raises(AssertionError) as caught:
        assert_no_locks(within=0)
    _, held, wanted = str(caught.value).splitlines()
    assert held.startswith(f"  lock inventory:sku-1, held by backend {busy.pid} (idle in trans")
    assert wanted.startswith(f"  lock inventory:sku-1, wanted by backend {pid} (active)")
    busy.release()
    waiter.join(60)


def test_foreign_session_lock_is_reported(assert_no_locks, rival):
    rival.execute("SELECT pg_advisory_lock(1, 2)")
    with pytest.raises(AssertionError, match="lock 1/2, held by backend"):
        assert_no_locks(within=0)
    rival.execute("SELECT pg_advisory_unlock_all()")


def test_held_lease_is_reported(assert_no_locks):
    with fenced_lock("nightly-sync", ttl=30) as lock:
        with pytest.raises(AssertionError, match=rf"lease nightly-sync, token {lock.token}, of "):
            assert_no_locks(within=0)
    assert_no_locks()


def test_project_without_the_app_has_no_leases(assert_no_locks, settings):
    apps = [name for name in settings.INSTALLED_APPS if name != "django_dblock"]
    with fenced_lock("nightly-sync", ttl=30), override_settings(INSTALLED_APPS=apps):
        assert_no_locks(within=0)


class NoLeasesHere:
    """A router that keeps the package's tables in another database."""

    def allow_migrate(self, db, app_label, **_):
        return app_label != "django_dblock"


def test_database_without_the_table_has_no_leases(assert_no_locks, settings, rival):
    settings.DATABASE_ROUTERS = [NoLeasesHere()]
    rename = "ALTER TABLE django_dblock_fencedlock{} RENAME TO django_dblock_fencedlock{}"
    rival.execute(rename.format("", "_away"))
    try:
        assert_no_locks("default", within=0)
    finally:
        rival.execute(rename.format("_away", ""))


def test_short_lived_lock_is_waited_for(assert_no_locks, hold_lock):
    busy = hold_lock("a")
    later = threading.Timer(0.05, busy.release)
    later.start()
    try:
        assert_no_locks(within=60)
    finally:
        later.join()
    with transaction.atomic(), pytest.raises(RuntimeError, match="outside of atomic"):
        assert_no_locks()


INNER = """
from functools import partial
from unittest import mock

import pytest
from django.db import connection, transaction
from django.test import TransactionTestCase
from django_dblock import advisory_lock, fenced_lock, testing

def test_clean(assert_no_locks, race):
    race(2, lambda: None)
    with advisory_lock("a"):
        pass

def test_leaks(assert_no_locks):
    global left
    left = transaction.atomic()
    left.__enter__()
    advisory_lock("a").__enter__()

def test_end_it():
    from django_dblock.testing import assert_no_locks
    left.__exit__(None, None, None)
    assert_no_locks()

def test_leaves_a_lock(monkeypatch, assert_no_locks):
    monkeypatch.setattr(testing, "assert_no_locks", partial(assert_no_locks, within=0))
    global busy
    busy = testing.hold_lock("b")
    busy.__enter__()

def test_lets_it_go(assert_no_locks):
    busy.release()

def test_frees(assert_no_locks, hold_lock):
    hold_lock("a")

@pytest.mark.usefixtures("assert_no_locks")
class EmptiesTheTables(TransactionTestCase):
    busy = testing.hold_lease(fenced_lock("nightly", ttl=30))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        defaults = testing.assert_no_locks.__kwdefaults__
        cls.enterClassContext(mock.patch.dict(defaults, within=0))
        cls.addClassCleanup(cls.busy.release)

    def test_leaves_a_lease(self):
        self.busy.__enter__()
"""


def test_leaking_test_fails(pytester):
    """In a run without pytest-django, on the database of this test."""
    pytester.makeconftest('pytest_plugins = ["django_dblock.testing.pytest"]')
    pytester.makepyfile(INNER)
    run = pytester.runpytest_inprocess("-p", "no:django", "-p", "no:cacheprovider", "-W", "error")
    run.assert_outcomes(passed=6, failed=1, errors=2)
    run.stdout.fnmatch_lines(["*ERROR at teardown of test_leaks*", "*inside a transaction*"])
    run.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves_a_lock*", "*lock b, held by*"])
    run.stdout.fnmatch_lines(["*EmptiesTheTables.test_leaves_a_lease*", "*lease nightly, token*"])
    connection.close()
