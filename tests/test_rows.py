"""lock_rows, lock_table, alocked."""

import threading

import pytest
from asgiref.sync import async_to_sync
from django.db import DataError, connection, transaction
from django.db.transaction import TransactionManagementError

from django_dblock import LockDeadlock, LockTimeout, alocked, lock_rows, lock_table
from tests.app.models import Counter
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


@pytest.fixture
def counters():
    return [Counter.objects.create(name=name) for name in "cab"]


def lock_timeout():
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        return cursor.fetchone()[0]


def hold_row(rival, pk):
    rival.execute("BEGIN")
    rival.execute("SELECT FROM app_counter WHERE id = %s FOR UPDATE", [pk])


class TestRows:
    def test_instances_come_locked_in_order_of_their_keys(self, counters, rival):
        rival.execute("SET lock_timeout = '20ms'")
        with transaction.atomic():
            rows = lock_rows(Counter.objects.order_by("name"))
            assert rows == counters
            with pytest.raises(Exception, match="lock timeout"):
                rival.execute("UPDATE app_counter SET value = 1")
            with pytest.raises(Exception, match="lock timeout"):
                rival.execute("SELECT FROM app_counter FOR KEY SHARE")

    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    def test_rows_of_an_instance_are_locked_in_its_database(self):
        rows = Counter.objects.all()
        rows._add_hints(instance=Counter.objects.using("other").create())  # as related managers do
        with transaction.atomic(using="other"):
            [row] = lock_rows(rows)
        assert row._state.db == "other"

    def test_no_key_allows_foreign_key_checks(self, counters, rival):
        with transaction.atomic():
            lock_rows(Counter.objects.all(), no_key=True, of=("self",))
            rival.execute("SELECT FROM app_counter FOR KEY SHARE")

    @pytest.mark.parametrize("timeout", [0, 0.02])
    def test_timeout_leaves_transaction_usable(self, counters, rival, timeout):
        hold_row(rival, counters[0].pk)
        with transaction.atomic():
            before = lock_timeout()
            with pytest.raises(LockTimeout, match=r"app\.counter:rows") as caught:
                lock_rows(Counter.objects.all(), timeout=timeout)
            assert lock_timeout() == before
            assert len(lock_rows(Counter.objects.exclude(pk=counters[0].pk), timeout=1)) == 2
            assert lock_timeout() == before
        assert caught.value.timeout == timeout

    def test_timeout_none_uses_the_servers_lock_timeout(self, counters, rival):
        hold_row(rival, counters[0].pk)
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '20ms'")
            with pytest.raises(LockTimeout, match="the server's lock_timeout"):
                lock_rows(Counter.objects.all(), timeout=None)

    def test_deadlock_is_lock_deadlock(self, counters, rival, observer):
        first, second = counters[0].pk, counters[1].pk
        hold_row(rival, second)
        with transaction.atomic():
            lock_rows(Counter.objects.filter(pk=first))
            waiting = threading.Thread(
                target=lambda: rival.execute(
                    "SET LOCAL deadlock_timeout = '1h';"
                    f"SELECT FROM app_counter WHERE id = {first} FOR UPDATE"
                )
            )
            waiting.start()
            blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            observe.until(lambda: observer.execute(blocked).fetchone() >= (1,), "it waits")
            with pytest.raises(LockDeadlock):
                lock_rows(Counter.objects.filter(pk=second))
        waiting.join()
        rival.execute("ROLLBACK")

    def test_other_errors_propagate(self, counters):
        with transaction.atomic(), pytest.raises(DataError):
            lock_rows(Counter.objects.extra(where=["1 / 0 = 1"]))

    def test_lock_rows_outside_a_transaction_is_refused(self, counters):
        with pytest.raises(TransactionManagementError, match="lock_rows"):
            lock_rows(Counter.objects.all())

    @pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
    def test_impossible_timeout_is_refused(self, timeout):
        with pytest.raises(ValueError, match="is not a number of seconds"):
            lock_rows(Counter.objects.all(), timeout=timeout)


class TestTable:
    def test_table_is_locked_in_its_mode(self, observer):
        mode = (
            "SELECT mode FROM pg_locks WHERE relation = 'app_counter'::regclass"
            " AND mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')"  # a vacuum's
        )
        with transaction.atomic():
            lock_table(Counter)
            assert observer.execute(mode).fetchall() == [("ShareRowExclusiveLock",)]
        assert observer.execute(mode).fetchall() == []

    @pytest.mark.parametrize("timeout", [0, 0.02])
    def test_timeout_leaves_transaction_usable(self, rival, timeout):
        rival.execute("BEGIN")
        rival.execute("LOCK TABLE app_counter IN EXCLUSIVE MODE")
        with transaction.atomic():
            with pytest.raises(LockTimeout, match=r"app\.counter:table"):
                lock_table(Counter, timeout=timeout)
            assert Counter.objects.count() == 0

    def test_unknown_mode_is_refused(self):
        with pytest.raises(ValueError, match="is none of access share, row share"):
            lock_table(Counter, mode="exclusive; DROP TABLE app_counter")


class TestAsync:
    def test_function_runs_under_the_lock(self, observer):
        def work(add, *, value):
            assert len(observe.locks(observer)) == 1
            return add + value

        assert async_to_sync(alocked)(work, 1, value=2, key=("inventory", "a")) == 3
        assert async_to_sync(alocked)(work, 1, value=2, key="inventory") == 3
        assert observe.locks(observer) == []

    def test_unfinished_result_is_refused(self):
        async def later():
            pass

        with pytest.raises(TypeError, match="runs a sync function"):
            async_to_sync(alocked)(later, key="a")
        with pytest.raises(TypeError, match="generator"):
            async_to_sync(alocked)(lambda: (n for n in [1]), key="a")
