"""Advisory locks: statements, held locks, errors and warnings."""

import asyncio
import contextvars
import functools
import pickle
import signal
import threading
from contextlib import nullcontext, suppress
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.utils.connection import ConnectionDoesNotExist
from django.utils.decorators import method_decorator

from django_dblock import (
    LockDeadlock,
    LockTimeout,
    UnsafeIsolation,
    UnsupportedDatabase,
    advisory_lock,
    advisory_locks,
    run_once,
    try_advisory_lock,
)
from django_dblock.advisory import acquire
from django_dblock.core import simple_query
from django_dblock.keys import to_pg_locks
from django_dblock.signals import lock_acquired, lock_released
from tests.app.models import Counter
from tests.helpers import observe
from tests.helpers.locks import held, hold, number

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]

KEY = ("inventory", "sku-1")
NOT_HERE = "that was not entered on this connection"


def sql(sent):
    """The messages, each as the first words of its statements. BEGIN alone is Django's own note of
    having switched autocommit off: it sends nothing."""
    return [
        " ".join(statement.split()[0] for statement in query["sql"].split(";")) for query in sent
    ]


class TestInAutocommit:
    def test_block_is_a_transaction_of_begin_lock_commit(self, statements, observer):
        with statements() as sent, advisory_lock(*KEY):
            assert connection.in_atomic_block
            assert to_pg_locks(number(*KEY)) in held(observer)
        assert sql(sent) == ["BEGIN", "BEGIN SELECT", "COMMIT"]
        assert not connection.in_atomic_block
        assert held(observer) == {}

    def test_error_in_the_block_rolls_back_and_releases(self, statements, observer):
        with statements() as sent, pytest.raises(ZeroDivisionError), advisory_lock(*KEY):
            Counter.objects.create(name="lost")
            raise ZeroDivisionError
        assert sql(sent) == ["BEGIN", "BEGIN SELECT", "INSERT", "ROLLBACK"]
        assert held(observer) == {}
        assert not Counter.objects.exists()

    def test_handle_has_the_locked_key(self):
        with advisory_lock(*KEY) as lock:
            assert lock.key == KEY
            assert lock.key_id == number(*KEY)
            assert (lock.using, lock.shared, lock.waited) == ("default", False, 0.0)

    def test_on_commit_hooks_run_after_the_release(self, observer):
        seen = []
        with advisory_lock(*KEY):
            transaction.on_commit(lambda: seen.append(held(observer)))
        assert seen == [{}]

    def test_failed_commit_releases_and_is_raised(self, observer):
        with pytest.raises(IntegrityError), advisory_lock(*KEY):
            with connection.cursor() as cursor:
                cursor.execute("CREATE TEMP TABLE one (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
                cursor.execute("INSERT INTO one VALUES (1), (1)")
        assert not connection.in_atomic_block
        assert held(observer) == {}

    def test_set_rollback_in_the_block_rolls_back(self, observer):
        with advisory_lock(*KEY):
            Counter.objects.create(name="lost")
            transaction.set_rollback(True)
        assert not Counter.objects.exists()

    def test_autocommit_off_lets_the_caller_end_the_transaction(self, statements, observer):
        transaction.set_autocommit(False)
        try:
            with statements() as sent, advisory_lock(*KEY):
                pass
            assert sql(sent) == ["BEGIN SELECT"]
            assert to_pg_locks(number(*KEY)) in held(observer)
            transaction.commit()
            assert held(observer) == {}
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    def test_autocommit_off_survives_a_timeout(self, rival):
        hold(rival, *KEY)
        transaction.set_autocommit(False)
        try:
            Counter.objects.create(name="kept")
            with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0.01):
                pass
            transaction.commit()
        finally:
            transaction.set_autocommit(True)
            rival.execute("ROLLBACK")
        assert Counter.objects.filter(name="kept").exists()


class TestInATransaction:
    def test_entering_is_one_statement_and_leaving_none(self, statements, observer):
        with transaction.atomic():
            connection.ensure_connection()
            with statements() as sent:
                with advisory_lock(*KEY):
                    assert len(sent) == 1
                assert len(sent) == 1
            assert to_pg_locks(number(*KEY)) in held(observer), "it ends with the transaction"
        assert held(observer) == {}

    def test_rolled_back_savepoint_frees_its_locks(self, observer):
        """The server knows; nothing in Python goes on believing it is held."""
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                with advisory_lock(*KEY):
                    raise ZeroDivisionError
            assert held(observer) == {}
            with advisory_lock(*KEY):  # and it is asked for again, not assumed
                assert to_pg_locks(number(*KEY)) in held(observer)

    def test_reentry_is_allowed_and_sends_a_statement(self, statements):
        with statements() as sent, advisory_lock(*KEY), advisory_lock(*KEY):
            assert try_advisory_lock(*KEY)
        assert sql(sent) == ["BEGIN", "BEGIN SELECT", "SELECT", "SELECT", "COMMIT"]

    def test_error_in_the_block_leaves_transaction_usable(self, observer):
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), advisory_lock(*KEY):
                raise ZeroDivisionError
            Counter.objects.create(name="kept")
        assert Counter.objects.exists()

    def test_connection_closed_in_the_block_rolls_back(self, observer):
        with advisory_lock(*KEY):
            Counter.objects.create(name="lost")
            connection.close()
        observe.until(lambda: held(observer) == {}, "the server noticed")
        assert not Counter.objects.exists()

    @pytest.mark.parametrize("labels", ["full", "off"])
    @pytest.mark.parametrize("how", ["by Django", "by the driver"])
    def test_closed_connection_is_djangos_own_error(self, how, labels, settings):
        settings.DBLOCK_LABELS = labels
        with pytest.raises(DatabaseError) as caught, transaction.atomic():
            Counter.objects.count()
            (connection if how == "by Django" else connection.connection).close()
            with advisory_lock(*KEY):
                pass
        assert not isinstance(caught.value, LockTimeout)
        connection.close()
        with advisory_lock(*KEY):
            pass

    def test_broken_transaction_stays_broken(self):
        with transaction.atomic():
            with pytest.raises(OperationalError, match="canceling statement"):
                connection.cursor().execute("SET LOCAL statement_timeout = 1; SELECT pg_sleep(1)")
            transaction.set_rollback(True)
            with pytest.raises(TransactionManagementError), advisory_lock(*KEY):
                pass


class TestWaiting:
    def test_timeout_0_tries_once(self, rival, statements):
        hold(rival, *KEY)
        with statements() as sent, pytest.raises(LockTimeout) as caught:
            with advisory_lock(*KEY, timeout=0):
                pass
        assert sql(sent) == ["BEGIN", "BEGIN SELECT", "ROLLBACK", "SELECT"], "last: who holds it?"
        assert caught.value.timeout == 0
        assert caught.value.key == KEY
        assert caught.value.using == "default"

    def test_timeout_0_leaves_transaction_usable(self, rival, statements):
        hold(rival, *KEY)
        with transaction.atomic():
            Counter.objects.create(name="before")
            with statements() as sent, pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0):
                pass
            assert len(sent) == 2, "try, and ask who holds it"
            Counter.objects.create(name="after")
        assert Counter.objects.count() == 2

    def test_timeout_leaves_transaction_usable(self, rival, statements):
        """Try, wait under a savepoint, go back: three messages of the four allowed."""
        hold(rival, *KEY)
        with transaction.atomic():
            Counter.objects.create(name="before")
            with statements() as sent, pytest.raises(LockTimeout) as caught:
                with advisory_lock(*KEY, timeout=0.05):
                    pass
            assert len(sent) == 3
            assert not connection.needs_rollback
            Counter.objects.create(name="after")
        assert Counter.objects.count() == 2
        assert caught.value.waited >= 0.05
        assert "inventory:sku-1 on database 'default' is locked" in str(caught.value)

    def test_waiter_acquires_when_the_holder_ends(self, rival, observer, statements):
        hold(rival, *KEY)
        ending = threading.Thread(
            target=lambda: (observe.until_blocked(observer), rival.execute("COMMIT"))
        )
        with transaction.atomic():
            connection.ensure_connection()
            ending.start()
            with statements() as sent, advisory_lock(*KEY) as lock:
                assert lock.waited > 0
            assert len(sent) == 2
        ending.join()

    def test_waiting_in_its_own_transaction_needs_no_savepoint(self, rival, observer, statements):
        hold(rival, *KEY)
        ending = threading.Thread(
            target=lambda: (observe.until_blocked(observer), rival.execute("COMMIT"))
        )
        ending.start()
        with statements() as sent, advisory_lock(*KEY, timeout=None):
            pass
        ending.join()
        assert sql(sent) == ["BEGIN", "BEGIN SELECT", "SELECT", "COMMIT"]

    def test_lock_that_was_busy_is_waited_for_at_once_until_it_is_free(self, rival, statements):
        """In transactions of their own: the try, then the wait, then the wait alone."""

        def lock(timeout):
            with statements() as sent, suppress(LockTimeout):
                with advisory_lock(*KEY, timeout=timeout):
                    pass
            asked = [query["sql"] for query in sent if "pg_try_advisory" in query["sql"]]
            return ["wait" if "lock_timeout" in text else "try" for text in asked]

        assert lock(9) == ["try"]
        hold(rival, *KEY)
        assert lock(0.02) == ["try", "wait"]
        assert lock(0.02) == ["wait"]
        rival.execute("COMMIT")
        assert lock(9) == ["wait"]
        assert lock(9) == ["try"]

    def test_shared_lock_in_its_own_transaction_is_waited_for_at_once(self, statements):
        """After a failed try of it one more statement would look whether it is held."""
        with statements() as sent, advisory_lock(*KEY, shared=True):
            pass
        [asked] = [query["sql"] for query in sent if "pg_try_advisory" in query["sql"]]
        assert "lock_timeout" in asked

    def test_memory_of_busy_locks_is_bounded(self, rival, monkeypatch):
        monkeypatch.setattr(simple_query, "_MOST_HINTS", 1)
        for key in ("a", "b"):
            hold(rival, key)
            with pytest.raises(LockTimeout), advisory_lock(key, timeout=0.02):
                pass
        assert len(acquire._contended) == 1

    def test_timeout_none_uses_the_servers_lock_timeout(self, rival):
        hold(rival, *KEY)
        with transaction.atomic():
            connection.cursor().execute("SET LOCAL lock_timeout = '30ms'")
            with pytest.raises(LockTimeout, match="the server's lock_timeout") as caught:
                with advisory_lock(*KEY, timeout=None):
                    pass
        assert caught.value.timeout is None

    def test_default_timeout_is_read_on_entry(self, rival, settings):
        hold(rival, *KEY)
        block = advisory_lock(*KEY)
        settings.DBLOCK_ADVISORY_TIMEOUT = 0.02
        with pytest.raises(LockTimeout) as caught, block:
            pass
        assert caught.value.timeout == 0.02

    def test_statement_timeout_is_djangos_error(self, rival):
        hold(rival, *KEY)
        with transaction.atomic():
            connection.cursor().execute("SET LOCAL statement_timeout = '500ms'")
            with pytest.raises(OperationalError, match="statement timeout"):
                with advisory_lock(*KEY):
                    pass
            connection.cursor().execute("SET LOCAL statement_timeout = 0")
            Counter.objects.create(name="after")
        assert Counter.objects.exists()

    @pytest.mark.parametrize(
        "timeout", [-1, -0.001, float("nan"), float("inf"), True, "1", timedelta(seconds=1), 10**10]
    )
    def test_wrong_timeout_is_refused_before_sql(self, timeout, statements):
        with statements() as sent, pytest.raises(ValueError, match="is not a number of seconds"):
            advisory_lock(*KEY, timeout=timeout)
        assert len(sent) == 0


class TestShared:
    def test_readers_share_and_writers_wait(self, rival):
        hold(rival, *KEY, shared=True)
        with advisory_lock(*KEY, shared=True, timeout=0) as lock:
            assert lock.shared
        with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0):
            pass
        with pytest.raises(LockTimeout), advisory_locks([KEY], timeout=0.01):
            pass

    def test_writer_keeps_readers_out(self, rival):
        hold(rival, *KEY)
        for timeout in (0, 0.01):
            with pytest.raises(LockTimeout), advisory_lock(*KEY, shared=True, timeout=timeout):
                pass

    def test_several_keys_can_be_locked_shared(self, rival, observer):
        hold(rival, "a", shared=True)
        with advisory_locks([("a",), ("b",)], shared=True, timeout=0):
            assert set(held(observer).values()) == {"ShareLock"}

    def test_holder_can_add_a_shared_lock(self, rival, observer):
        """Also where a writer waits: before PostgreSQL 18 the server's own try says no then."""
        with transaction.atomic(), advisory_lock(*KEY):
            waiting = threading.Thread(
                target=lambda: rival.execute(f"SELECT pg_advisory_xact_lock({number(*KEY)})")
            )
            waiting.start()
            observe.until_blocked(observer)
            assert try_advisory_lock(*KEY, shared=True)
            with advisory_lock(*KEY, shared=True, timeout=0):
                pass
        waiting.join()

    def test_error_of_the_second_try_is_raised(self, rival):
        """A busy shared try looks again; where that fails, Django knows the transaction is over."""

        def fail(execute, query, params, many, context):
            if "pg_locks" in query:
                return execute("SELECT 1 / 0", None, many, context)
            return execute(query, params, many, context)

        hold(rival, *KEY)
        with pytest.raises(TransactionManagementError), transaction.atomic():
            with connection.execute_wrapper(fail), pytest.raises(DataError):
                try_advisory_lock(*KEY, shared=True)
            assert connection.needs_rollback
            Counter.objects.count()

    def test_only_reader_can_upgrade(self, observer):
        with advisory_lock(*KEY, shared=True), advisory_lock(*KEY, timeout=0):
            assert try_advisory_lock(*KEY)


class TestHolder:
    """A timeout says who holds the lock, and asks only then."""

    @pytest.fixture
    def holder(self, rival):
        rival.execute("SET application_name = 'worker lock[inventory:sku-1]'")
        hold(rival, *KEY)
        return rival.info.backend_pid

    @pytest.mark.parametrize("timeout", [0, 0.02])
    @pytest.mark.parametrize("joined", [False, True])
    def test_timeout_names_the_holder(self, holder, timeout, joined):
        with transaction.atomic() if joined else nullcontext():
            with pytest.raises(LockTimeout) as caught, advisory_lock(*KEY, timeout=timeout):
                pass
            assert Counter.objects.count() == 0, "the transaction is usable"
        named = f"backend {holder} of 'worker' (label inventory:sku-1)"
        assert f"is locked by {named}: gave up" in str(caught.value)
        assert (caught.value.holder, caught.value.holder_pid) == (named, holder)

    def test_holder_of_one_of_several_keys_is_named(self, holder):
        with transaction.atomic(), pytest.raises(LockTimeout) as caught:
            with advisory_locks(["a", KEY, "b"], timeout=0.02):
                pass
        assert caught.value.holder_pid == holder

    def test_unnamed_holder_is_named_by_pid(self, rival):
        rival.execute("SET application_name = ''")
        hold(rival, *KEY)
        with pytest.raises(LockTimeout) as caught, advisory_lock(*KEY, timeout=0):
            pass
        assert caught.value.holder == f"backend {rival.info.backend_pid}"

    @pytest.mark.parametrize("joined", [False, True])
    def test_failed_query_for_the_holder_is_ignored(self, holder, joined):
        def fail(execute, query, params, many, context):
            if "pg_stat_activity" in query:
                return execute("SELECT 1 / 0", None, many, context)
            return execute(query, params, many, context)

        with transaction.atomic() if joined else nullcontext():
            with connection.execute_wrapper(fail), pytest.raises(LockTimeout) as caught:
                with advisory_lock(*KEY, timeout=0):
                    pass
            assert Counter.objects.count() == 0
        assert caught.value.holder == "another transaction"
        assert caught.value.holder_pid is None

    def test_ended_holder_is_not_named(self, holder, rival):
        def leave(execute, query, params, many, context):
            if "pg_stat_activity" in query:
                rival.execute("COMMIT")
            return execute(query, params, many, context)

        with connection.execute_wrapper(leave), pytest.raises(LockTimeout) as caught:
            with advisory_lock(*KEY, timeout=0):
                pass
        assert caught.value.holder == "another transaction"


class TestModes:
    """``advisory_locks(exclusive=[…], shared=[…])``."""

    def test_each_key_is_locked_in_its_mode(self, observer):
        with advisory_locks(exclusive=["a", ("b", 1)], shared=["c"]) as locks:
            assert held(observer) == {
                to_pg_locks(number("a")): "ExclusiveLock",
                to_pg_locks(number("b", 1)): "ExclusiveLock",
                to_pg_locks(number("c")): "ShareLock",
            }
            assert locks.keys == (("a",), ("b", 1), ("c",))
            assert (locks.shared, locks.shared_keys) == (False, (("c",),))
        assert held(observer) == {}

    def test_key_in_both_lists_is_locked_exclusively(self, observer):
        with advisory_locks(exclusive=["a"], shared=["a", "b"]) as locks:
            assert held(observer) == {
                to_pg_locks(number("a")): "ExclusiveLock",
                to_pg_locks(number("b")): "ShareLock",
            }
        assert locks.shared_keys == (("b",),)

    def test_lists_add_to_the_keys(self, observer):
        with advisory_locks(["a"], exclusive=["b"], shared=["c"]) as locks:
            assert len(held(observer)) == 3
        assert locks.shared_keys == (("c",),)

    def test_list_of_shared_keys_alone_locks_shared(self, rival):
        hold(rival, "a", shared=True)
        with advisory_locks(shared=["a"], timeout=0) as locks:
            assert locks.shared

    def test_reader_blocks_only_the_exclusive_list(self, rival):
        hold(rival, "c", shared=True)
        with transaction.atomic():
            with advisory_locks(exclusive=["a"], shared=["c"], timeout=0.02):
                pass
            with pytest.raises(LockTimeout), advisory_locks(exclusive=["c"], timeout=0.02):
                pass
            with pytest.raises(LockTimeout):
                with advisory_locks(exclusive=["c"], shared=["a"], timeout=0.02):
                    pass

    def test_contradicting_lists_are_refused(self):
        with pytest.raises(TypeError, match="shared=True shares all keys"):
            advisory_locks(exclusive=["a"], shared=True)
        with pytest.raises(TypeError, match="returns all of them"):
            advisory_locks(lambda: ["a"], shared=["b"])
        with pytest.raises(TypeError, match="returns all of them"):
            advisory_locks(lambda: ["a"], exclusive=["b"])
        with pytest.raises(ValueError, match="at least one key"):
            advisory_locks(exclusive=[], shared=[])
        with pytest.raises(TypeError, match="takes a list of keys"):
            advisory_locks(shared="abc")


class TestMisuse:
    def test_key_for_each_argument_is_refused(self):
        with pytest.raises(TypeError, match="takes one list of keys, not a key for each argument"):
            advisory_locks("a", "b")

    @pytest.mark.parametrize("make", [lambda: advisory_lock("a", 1), lambda: advisory_locks(["a"])])
    def test_unentered_lock_warns(self, make):
        with pytest.warns(ResourceWarning, match=r"advisory_locks?\(a(:1)?\) was never entered"):
            make()

    def test_unused_decorator_warns_about_its_callable(self):
        with pytest.warns(ResourceWarning, match=r"advisory_lock\(…\) was never entered"):
            advisory_lock(lambda sku: sku)

    def test_entered_lock_does_not_warn(self):
        @advisory_lock("a")
        def locked():
            pass

        locked()
        with advisory_lock("b"):
            pass

    def test_unfinished_result_is_refused(self):
        @advisory_lock("a")
        def later():
            return (n for n in range(3))

        with pytest.raises(TypeError, match="returned a generator"):
            later()


class TestInterrupted:
    """An exception from a signal handler, as Celery's soft time limit, in the middle of a wait."""

    @pytest.fixture
    def interrupt(self, rival, observer):
        """Raise in this thread as soon as it waits."""

        class SoftTimeLimit(Exception):
            pass

        def handler(*_):
            raise SoftTimeLimit

        before = signal.signal(signal.SIGALRM, handler)

        def when_blocked():
            observe.until_blocked(observer)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

        hold(rival, *KEY)
        thread = threading.Thread(target=when_blocked)
        thread.start()
        yield SoftTimeLimit
        thread.join()
        signal.signal(signal.SIGALRM, before)

    @pytest.mark.parametrize("ordinary", [False, True], ids=["fast path", "ordinary cursor"])
    @pytest.mark.parametrize("joined", [False, True])
    def test_interrupted_wait_leaves_no_waiter(self, interrupt, rival, observer, joined, ordinary):
        def wrapper(execute, *args):
            return execute(*args)

        with transaction.atomic() if joined else nullcontext():
            with connection.execute_wrapper(wrapper) if ordinary else nullcontext():
                with pytest.raises(interrupt), advisory_lock(*KEY, timeout=60):
                    pass
            assert observe.waiting(observer) == []
            Counter.objects.create(name="usable")
        rival.execute("COMMIT")
        assert held(observer) == {}
        assert Counter.objects.count() == 1


class TestInterruptedAfterTimeout:
    """A signal handler's exception after the timeout must not be lost behind LockTimeout."""

    class SoftTimeLimit(Exception):
        pass

    def interrupt(self, monkeypatch, name, moment):
        original = getattr(acquire, name)

        def act(*arguments, **more):
            if moment in arguments:
                raise self.SoftTimeLimit
            return original(*arguments, **more)

        monkeypatch.setattr(acquire, name, act)

    def test_during_the_rollback_to_the_savepoint(self, rival, monkeypatch):
        hold(rival, *KEY)
        self.interrupt(monkeypatch, "send", acquire.sql.ROLLBACK)
        with pytest.raises(self.SoftTimeLimit), transaction.atomic():
            advisory_lock(*KEY, timeout=0.01).__enter__()
        assert not connection.in_atomic_block

    @pytest.mark.parametrize("joined", [False, True])
    def test_while_the_holder_is_looked_up(self, rival, monkeypatch, joined):
        hold(rival, *KEY)
        name = "send" if joined else "fetch"
        self.interrupt(monkeypatch, name, acquire.sql.HOLDERS)
        with transaction.atomic() if joined else nullcontext():
            with pytest.raises(self.SoftTimeLimit):
                advisory_lock(*KEY, timeout=0).__enter__()
        assert not connection.in_atomic_block


class TestSeveral:
    def test_several_keys_cost_as_much_as_one(self, statements, observer):
        wanted = [("account", n) for n in range(20)]
        with statements() as sent, advisory_locks(wanted) as locks:
            assert len(held(observer)) == 20
        assert sql(sent) == ["BEGIN", "BEGIN SELECT", "COMMIT"]
        assert locks.keys == tuple(wanted)
        assert locks.key_ids == tuple(number("account", n) for n in range(20))
        assert locks.waited == 0.0
        with transaction.atomic():
            connection.ensure_connection()
            with statements() as sent, advisory_locks(wanted):
                pass
            assert len(sent) == 1

    def test_timeout_locks_none_of_several(self, rival, observer):
        """What was had before the time-out is given back, whosever transaction it is."""
        for key in [("a",), ("b",)]:  # whichever has the lower number
            hold(rival, *key)
            for timeout in (0, 0.02):
                with transaction.atomic():
                    with (
                        pytest.raises(LockTimeout),
                        advisory_locks([("a",), ("b",)], timeout=timeout),
                    ):
                        pass
                    assert set(held(observer)) == {to_pg_locks(number(*key))}
                    Counter.objects.count()
                with pytest.raises(LockTimeout), advisory_locks([("a",), ("b",)], timeout=timeout):
                    pass
                assert set(held(observer)) == {to_pg_locks(number(*key))}
            rival.execute("ROLLBACK")

    def test_timeout_of_several_keys_names_them_all(self, connect):
        for key in ("a", "b", "c"):
            hold(connect(), key)
        with pytest.raises(LockTimeout) as caught:
            with advisory_locks(["a", "b", "c"], timeout=0.05):
                pass
        assert caught.value.waited >= 0.05
        assert caught.value.key is None
        assert caught.value.keys == (("a",), ("b",), ("c",))

    @pytest.fixture
    def limits(self, observer, monkeypatch):
        """The limit of each wait in milliseconds; a wait for a lock is over after 50 ms."""
        noted = []
        observer.execute(
            "CREATE FUNCTION wait_noted(bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE NOTICE 'limit %', extract(epoch FROM"
            " current_setting('lock_timeout')::interval) * 1000;"
            " PERFORM pg_sleep(0.05); END $$"
        )
        lock = " pg_advisory_xact_lock(wanted.id)"
        assert acquire.sql.WAIT_ALL.count(lock) == 1
        statement = acquire.sql.WAIT_ALL.replace(lock, " wait_noted(wanted.id)")
        monkeypatch.setattr(acquire.sql, "WAIT_ALL", statement)
        connection.ensure_connection()
        connection.connection.add_notice_handler(
            lambda notice: noted.append(float(notice.message_primary.removeprefix("limit ")))
        )
        yield noted
        connection.close()
        observer.execute("DROP FUNCTION wait_noted")

    def test_deadline_includes_waits_for_earlier_keys(self, connect, limits):
        """What is left for each key is less by what was waited for the keys before."""
        for key in ("a", "b", "c"):
            hold(connect(), key)
        with advisory_locks(["a", "b", "c"], timeout=9):
            pass
        first, second, third = limits
        assert 9000 >= first >= second + 50 >= third + 100

    def test_wait_for_one_of_several_keys_is_one_statement(self, rival, observer, statements):
        hold(rival, "a")
        ending = threading.Thread(
            target=lambda: (observe.until_blocked(observer), rival.execute("COMMIT"))
        )
        with transaction.atomic():
            connection.ensure_connection()
            ending.start()
            with statements() as sent, advisory_locks(["a", "b"]) as locks:
                assert locks.waited > 0
            assert len(sent) == 1
        ending.join()

    def test_key_may_be_given_twice(self, observer):
        with advisory_locks([KEY, KEY]) as locks:
            assert locks.key_ids == (number(*KEY),) * 2
            assert len(held(observer)) == 1

    def test_bare_part_is_a_key(self):
        with advisory_locks(["ab", 7]) as locks:
            assert locks.key_ids == (number("ab"), number(7))

    def test_empty_list_is_refused(self, statements):
        with statements() as sent, pytest.raises(ValueError, match="at least one key"):
            advisory_locks([])
        assert len(sent) == 0

    def test_single_key_instead_of_a_list_is_refused(self):
        with pytest.raises(TypeError, match="a tuple of parts is a single key"):
            advisory_locks(("account", 1))
        with advisory_locks((("account", 1), ("account", 2))) as locks:
            assert locks.key_ids == (number("account", 1), number("account", 2))

    @pytest.mark.parametrize("keys", ["ab", b"ab"])
    def test_text_instead_of_a_list_is_refused(self, keys):
        with pytest.raises(TypeError, match="takes a list of keys"):
            advisory_locks(keys)

    def test_million_keys_are_refused_early(self, settings):
        read = []
        with pytest.raises(ValueError, match=r"More than 1000 keys .*DBLOCK_MAX_KEYS"):
            advisory_locks(read.append(n) or n for n in range(1_000_000))
        assert len(read) == 1001
        settings.DBLOCK_MAX_KEYS = 2
        with pytest.raises(ValueError, match="More than 2 keys"):
            advisory_locks([1, 2, 3])


class TestTry:
    def test_successful_try_locks_until_the_transaction_ends(self, statements, observer):
        with transaction.atomic():
            connection.ensure_connection()
            with statements() as sent:
                assert try_advisory_lock(*KEY) is True
            assert len(sent) == 1
            assert to_pg_locks(number(*KEY)) in held(observer)
        assert held(observer) == {}

    def test_failed_try_leaves_transaction_usable(self, rival):
        hold(rival, *KEY)
        with transaction.atomic():
            assert try_advisory_lock(*KEY) is False
            assert try_advisory_lock(*KEY, shared=True) is False
            Counter.objects.create(name="after")
        assert Counter.objects.exists()

    def test_try_outside_a_transaction_is_refused_before_sql(self, statements):
        with statements() as sent, pytest.raises(TransactionManagementError, match="atomic"):
            try_advisory_lock(*KEY)
        assert len(sent) == 0

    def test_try_refuses_a_wrong_key_first(self):
        with pytest.raises(TypeError):
            try_advisory_lock(1.5)


class TestDecorator:
    def test_callable_parts_get_the_calls_arguments(self):
        @advisory_lock("inventory", lambda request, sku: sku, timeout=0)
        def buy(request, sku):
            """Buy it."""
            return connection.connection.info.parameter_status("application_name")

        assert "lock[inventory:sku-7]" in buy("request", sku="sku-7")
        assert "lock[inventory:sku-8]" in buy("request", "sku-8")
        assert buy.__name__ == "buy"
        assert buy.__doc__ == "Buy it."

    def test_stacked_decorators_lock_all_their_keys(self, observer):
        @advisory_lock("nightly")
        @advisory_locks(lambda a, b: [("account", a), ("account", b)])
        @advisory_locks(["x", "y"])
        def transfer(a, b):
            return len(held(observer))

        assert transfer(1, 2) == 5

    def test_callable_returning_a_wrong_part_is_refused(self):
        @advisory_lock("inventory", lambda sku: None)
        def buy(sku):
            raise AssertionError("ran")

        with pytest.raises(TypeError, match="Part 2 of 2 in the key, None"):
            buy("a")

    def test_constant_wrong_part_fails_at_import(self):
        with pytest.raises(TypeError, match="Part 1 of 2"):
            advisory_lock(1.5, lambda: 1)

    @pytest.mark.parametrize(
        "block", [advisory_lock("a", lambda: 1), advisory_locks(lambda: ["a"])]
    )
    def test_callable_in_a_with_statement_is_refused(self, block, statements):
        with statements() as sent, pytest.raises(TypeError, match="for the decorator"):
            with block:
                pass
        assert len(sent) == 0

    def test_method_decorator_locks_a_method(self, observer):
        @method_decorator(advisory_lock("view", lambda request: request), name="post")
        class View:
            def post(self, request):
                return to_pg_locks(number("view", request)) in held(observer)

        assert View().post("r")

    def test_recursive_function_is_allowed(self):
        @advisory_lock(*KEY)
        def count(n):
            return n if n == 0 else count(n - 1)

        assert count(3) == 0
        assert not connection.in_atomic_block

    def test_generators_and_classes_are_refused_at_decoration(self):
        async def coroutine():
            pass

        async def asyncgen():
            yield

        def generator():
            yield

        class View:
            pass

        lock = advisory_lock("a")
        for function in (coroutine, functools.partial(coroutine), asyncgen):
            with pytest.raises(TypeError, match="can't span an await"):
                lock(function)
        with pytest.raises(TypeError, match="generator function"):
            lock(generator)
        with pytest.raises(TypeError, match="is a class"):
            lock(View)


class TestAsync:
    def test_async_with_is_refused_with_advice(self):
        async def use():
            async with advisory_lock("a"):
                pass

        with pytest.raises(TypeError, match="sync_to_async"):
            asyncio.run(use())

    def test_sync_block_in_async_code_is_refused(self):
        async def use():
            with advisory_lock("a"):
                pass

        with pytest.raises(Exception, match="async context"):
            asyncio.run(use())
        with advisory_lock("a"):
            pass

    @pytest.mark.usefixtures("_unsafe")
    def test_tasks_that_share_a_block_leave_their_own_entries(self, observer):
        """With DJANGO_ALLOW_ASYNC_UNSAFE each task of a thread has connections of its own."""
        block = advisory_lock(*KEY, shared=True)

        async def join(theirs, both, left):
            with transaction.atomic():
                with block:
                    theirs.set()
                    await both.wait()
                assert connection.in_atomic_block
                left.set()
            connections.close_all()

        async def hold_it(theirs, both, left):
            await theirs.wait()
            with block:
                both.set()
                await left.wait()
            assert not connection.in_atomic_block
            connections.close_all()

        async def use():
            events = [asyncio.Event() for _ in range(3)]
            await asyncio.gather(join(*events), hold_it(*events))

        asyncio.run(use())
        assert held(observer) == {}

    @pytest.mark.usefixtures("_unsafe")
    def test_block_left_in_another_task_is_an_error(self, observer):
        block = advisory_lock(*KEY)

        async def leave():
            with pytest.raises(TransactionManagementError, match=NOT_HERE):
                block.__exit__(None, None, None)
            connections.close_all()

        async def use():
            block.__enter__()
            await asyncio.create_task(leave(), context=contextvars.Context())
            assert to_pg_locks(number(*KEY)) in held(observer)
            block.__exit__(None, None, None)
            assert held(observer) == {}
            connections.close_all()

        asyncio.run(use())

    @pytest.mark.usefixtures("_unsafe")
    def test_block_entered_in_a_loop_and_left_after_it_is_an_error(self):
        block = advisory_lock(*KEY)
        entered = []

        async def use():
            block.__enter__()
            entered.append(connections["default"])

        asyncio.run(use())
        with pytest.raises(TransactionManagementError, match=NOT_HERE):
            block.__exit__(None, None, None)
        entered[0].close()

    @pytest.fixture
    def _unsafe(self, monkeypatch):
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")


class TestAliases:
    def test_using_locks_only_on_that_alias(self, statements, observer, connect):
        theirs = connect("other")
        with statements() as sent, statements("other") as sent_there:
            with advisory_lock(*KEY, using="other") as lock:
                assert lock.using == "other"
                assert to_pg_locks(number(*KEY)) in held(theirs)
                assert held(observer) == {}
                assert not connection.in_atomic_block
        assert len(sent) == 0
        assert sql(sent_there) == ["BEGIN", "BEGIN SELECT", "COMMIT"]

    def test_dblock_database_is_the_default_alias(self, settings):
        settings.DBLOCK_DATABASE = "other"
        with advisory_lock(*KEY) as lock:
            assert lock.using == "other"
        with advisory_lock(*KEY, using="default") as lock:
            assert lock.using == "default"

    def test_blocks_on_two_aliases_are_independent(self, connect, observer):
        theirs = connect("other")
        with advisory_lock("a"), advisory_lock("b", using="other"):
            assert len(held(observer)) == len(held(theirs)) == 1
        assert held(observer) == held(theirs) == {}

    def test_unknown_alias_is_refused(self):
        with pytest.raises(ConnectionDoesNotExist), advisory_lock("a", using="nowhere"):
            pass

    def test_other_engine_is_refused_by_name(self):
        with pytest.raises(UnsupportedDatabase, match=r"'sqlite' is SQLite") as caught:
            with advisory_lock("a", using="sqlite"):
                pass
        assert (caught.value.using, caught.value.engine) == ("sqlite", "SQLite")
        with pytest.raises(UnsupportedDatabase):
            try_advisory_lock("a", using="sqlite")

    @pytest.mark.parametrize("joined", [True, False])
    @pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
    def test_cockroachdb_is_refused_by_name(self, keys, joined, observer, cockroach):
        """Its advisory lock functions exist and lock nothing; it reports its version at the start
        of a session."""
        with transaction.atomic() if joined else nullcontext():
            with pytest.raises(UnsupportedDatabase, match="CockroachDB"), advisory_locks(keys):
                pass
            assert held(observer) == {}
            assert Counter.objects.count() == 0, "the transaction is usable"
        with transaction.atomic(), pytest.raises(UnsupportedDatabase):
            try_advisory_lock("a")

    @pytest.mark.parametrize("wrapped", [True, False])
    @pytest.mark.usefixtures("cockroach")
    def test_run_once_on_cockroachdb_leaves_the_transaction_usable(self, wrapped):
        around = connection.execute_wrapper(lambda execute, *given: execute(*given))
        with transaction.atomic():
            with around if wrapped else nullcontext():
                with pytest.raises(UnsupportedDatabase, match="CockroachDB"):
                    run_once("pay", work=lambda: 1)
            assert not connection.needs_rollback
            assert Counter.objects.count() == 0


class TestIsolation:
    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    @pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
    def test_snapshot_isolation_is_refused_without_a_lock(self, level, keys, observer):
        with transaction.atomic():
            connection.cursor().execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            with pytest.raises(UnsafeIsolation, match=level) as caught, advisory_locks(keys):
                pass
            assert isinstance(caught.value, ImproperlyConfigured)
            assert caught.value.isolation == level.lower()
            assert held(observer) == {}
            Counter.objects.create(name="after")
        assert Counter.objects.exists()

    @pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
    def test_setting_allows_snapshot_isolation(self, keys, settings, observer):
        settings.DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True
        with transaction.atomic():
            connection.cursor().execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            with advisory_locks(keys):
                assert len(held(observer)) == len(keys)

    def test_read_uncommitted_is_accepted(self, observer):
        with transaction.atomic():
            connection.cursor().execute("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
            assert try_advisory_lock("a")


class TestDjangosPool:
    """OPTIONS["pool"]: connections come from psycopg's pool and go back to it."""

    @pytest.fixture(autouse=True)
    def _use_the_pool(self, monkeypatch):
        connection.close()
        options = {"min_size": 1, "max_size": 1}
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", options)
        yield
        connection.close()
        connection.close_pool()

    def test_pooled_connection_holds_nothing(self, observer, rival):
        with advisory_lock(*KEY):
            assert to_pg_locks(number(*KEY)) in held(observer)
        connection.close()
        assert held(observer) == {}
        hold(rival, *KEY)
        with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0.01):
            pass
        connection.close()
        with advisory_lock("next"):
            assert TestLabels().application_name(observer) == "tests lock[next]"


class TestLabels:
    def application_name(self, observer):
        [[name]] = observer.execute(
            "SELECT application_name FROM pg_stat_activity WHERE pid = %s",
            [connection.connection.info.backend_pid],
        )
        return name

    def test_label_extends_the_application_name(self, observer):
        with advisory_lock(*KEY), advisory_lock("account", 7):
            assert self.application_name(observer) == "tests lock[inventory:sku-1 account:7]"
        assert self.application_name(observer) == "tests"

    def test_rolled_back_savepoint_removes_its_labels(self, observer):
        with advisory_lock("outer"):
            with pytest.raises(ZeroDivisionError), transaction.atomic(), advisory_lock("inner"):
                raise ZeroDivisionError
            assert self.application_name(observer) == "tests lock[outer]"
            with advisory_lock("next"):
                assert self.application_name(observer) == "tests lock[outer next]"

    def test_refused_lock_leaves_no_label(self, rival, observer):
        hold(rival, *KEY)
        with transaction.atomic():
            assert not try_advisory_lock(*KEY)
            with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0.01):
                pass
            assert self.application_name(observer) == "tests"

    def test_labels_can_be_switched_off(self, settings, observer):
        settings.DBLOCK_LABELS = "off"
        with advisory_lock(*KEY), advisory_locks(["a", "b"]):
            assert self.application_name(observer) == "tests"

    def test_labels_first_shows_only_the_first_part(self, settings, observer):
        settings.DBLOCK_LABELS = "first"
        with advisory_lock("mail", "ann@example.org"):
            assert "ann" not in self.application_name(observer)
            assert self.application_name(observer).startswith("tests lock[mail~")

    @pytest.mark.parametrize(
        "part", ["%s %(x)s %%", "'; DROP TABLE app_counter; --", "\x00", "🔒\udc80"]
    )
    def test_keys_reach_sql_as_parameters_only(self, part, observer):
        with advisory_lock("inventory", part), advisory_locks([part, "b"]):
            assert len(held(observer)) == 3
            assert self.application_name(observer).isascii()
        Counter.objects.count()


class TestErrors:
    def test_deadlock_names_key_and_leaves_transaction_usable(self, rival, observer):
        hold(rival, "b")
        with transaction.atomic():
            Counter.objects.create(name="before")
            with advisory_lock("a"):
                waiting = threading.Thread(
                    target=lambda: rival.execute(
                        "SET LOCAL deadlock_timeout = '1h';"
                        f"SELECT pg_advisory_xact_lock({number('a')})"
                    )
                )
                waiting.start()
                observe.until_blocked(observer)
                with pytest.raises(LockDeadlock, match="Waiting for b on database") as caught:
                    with advisory_lock("b"):
                        pass
                Counter.objects.create(name="after")
        waiting.join()
        rival.execute("ROLLBACK")
        assert caught.value.key == ("b",)
        assert Counter.objects.count() == 2

    def test_deadlock_in_its_own_transaction(self, rival, observer):
        order = sorted(["a", "b"], key=number)
        hold(rival, order[1])

        def wait():
            observe.until_blocked(observer)  # we have the first and wait for the second
            rival.execute(
                "SET LOCAL deadlock_timeout = '1h';"
                f"SELECT pg_advisory_xact_lock({number(order[0])})"
            )

        waiting = threading.Thread(target=wait)
        waiting.start()
        with pytest.raises(LockDeadlock), advisory_locks(order):
            pass
        waiting.join()
        rival.execute("ROLLBACK")
        assert not connection.in_atomic_block

    def test_two_upgrades_from_shared_do_not_hang(self, rival, observer):
        """Each waits for the other's share: the server sees it, whatever the timeout."""
        hold(rival, *KEY, shared=True)
        with transaction.atomic(), advisory_lock(*KEY, shared=True):
            waiting = threading.Thread(
                target=lambda: rival.execute(
                    "SET LOCAL deadlock_timeout = '1h';"
                    f"SELECT pg_advisory_xact_lock({number(*KEY)})"
                )
            )
            waiting.start()
            observe.until_blocked(observer)
            with pytest.raises(LockDeadlock, match="exclusively at once"):
                with advisory_lock(*KEY, timeout=None):
                    pass
        waiting.join()
        rival.execute("ROLLBACK")

    def test_lost_connection_is_djangos_error(self, observer):
        with pytest.raises(OperationalError) as caught, transaction.atomic():
            connection.ensure_connection()
            pid = connection.connection.info.backend_pid
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            with advisory_lock(*KEY):
                pass
        assert not isinstance(caught.value, LockTimeout)
        with advisory_lock(*KEY):
            pass

    @pytest.mark.parametrize("autocommit", [True, False])
    def test_connection_lost_while_waiting_is_djangos_error(self, autocommit, rival, observer):
        hold(rival, *KEY)

        def terminate():
            observe.until_blocked(observer)
            [pid] = observe.waiting(observer)
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

        ending = threading.Thread(target=terminate)
        transaction.set_autocommit(autocommit)
        ending.start()
        outer = transaction.atomic() if autocommit else nullcontext()
        with pytest.raises(OperationalError, match="terminat"), outer, advisory_lock(*KEY):
            pass
        ending.join()
        connection.close()
        assert Counter.objects.count() == 0

    @pytest.mark.parametrize("joined", [True, False])
    def test_ctrl_c_while_waiting_leaves_the_transaction_usable(self, joined, rival, observer):
        hold(rival, *KEY)

        def interrupt(*_):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        pressing = threading.Thread(
            target=lambda: (
                observe.until_blocked(observer),
                signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM),
            )
        )
        try:
            with transaction.atomic() if joined else nullcontext():
                Counter.objects.create(name="before")
                pressing.start()
                with pytest.raises(KeyboardInterrupt), advisory_lock(*KEY):
                    pass
                assert connection.in_atomic_block == joined
                Counter.objects.create(name="after")
        finally:
            signal.signal(signal.SIGALRM, before)
            pressing.join()
        assert Counter.objects.count() == 2

    def test_interrupted_message_rolls_back(self, observer):
        """Something raises after the whole message went through: where it stands is unknown."""

        class Alarm(BaseException):
            pass

        def raise_after(execute, query, params, many, context):
            execute(query, params, many, context)
            raise Alarm

        with pytest.raises(TransactionManagementError), transaction.atomic():
            with connection.execute_wrapper(raise_after), pytest.raises(Alarm):
                with advisory_locks(["a", "b"]):
                    pass
            assert connection.needs_rollback
            Counter.objects.create(name="after")
        assert held(observer) == {}

    def test_errors_are_picklable_with_their_data(self, rival):
        hold(rival, *KEY)
        with pytest.raises(LockTimeout) as caught:
            with advisory_lock(*KEY, timeout=0):
                pass
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)
        assert vars(again) == vars(caught.value)


class TestNothingStaysBehind:
    """Whatever fails after the lock was granted, the transaction that was opened for it ends."""

    @pytest.fixture
    def _hear(self):
        def hear(**_):
            heard.append(1)

        heard = []
        for event in (lock_acquired, lock_released):
            event.connect(hear)
        yield
        for event in (lock_acquired, lock_released):
            event.disconnect(hear)
        assert heard == [1, 1]

    @pytest.mark.parametrize("labels", ["full", "first", "off"])
    @pytest.mark.usefixtures("_hear")
    def test_key_of_a_deleted_instance_is_locked_and_released(self, labels, settings, observer):
        settings.DBLOCK_LABELS = labels
        counter = Counter.objects.create(name="a")
        block = advisory_lock("counter", counter)
        counter.delete()
        with block:
            pass
        assert not connection.in_atomic_block
        assert held(observer) == {}

    @pytest.mark.usefixtures("_hear")
    def test_instance_deleted_in_the_block_keeps_its_error(self):
        counter = Counter.objects.create(name="a")
        with pytest.raises(ZeroDivisionError), advisory_lock("counter", counter):
            counter.delete()
            raise ZeroDivisionError

    @pytest.mark.parametrize("joined", [True, False])
    def test_exit_in_a_receiver_leaves_nothing_open(self, joined, observer):
        def leave(**_):
            raise SystemExit

        outer = advisory_lock("outer") if joined else nullcontext()
        with outer:
            lock_acquired.connect(leave)
            try:
                with pytest.raises(SystemExit), advisory_lock(*KEY):
                    pass
            finally:
                lock_acquired.disconnect(leave)
            assert connection.in_atomic_block == joined
        assert not connection.in_atomic_block
        assert connections["default"].__dict__["_dblock_entries"] == []
        assert held(observer) == {}

    def test_block_left_on_another_alias_is_an_error(self, settings):
        block = advisory_lock("a")
        block.__enter__()
        settings.DBLOCK_DATABASE = "other"
        with pytest.raises(TransactionManagementError, match=NOT_HERE):
            block.__exit__(None, None, None)
        settings.DBLOCK_DATABASE = None
        block.__exit__(None, None, None)

    def test_block_left_in_another_thread_is_an_error(self, observer):
        block = advisory_lock(*KEY)
        errors = []

        def leave():
            try:
                block.__exit__(None, None, None)
            except TransactionManagementError as error:
                errors.append(str(error))
            finally:
                connections.close_all()

        block.__enter__()
        other = threading.Thread(target=leave)
        other.start()
        other.join()
        [error] = errors
        assert NOT_HERE in error
        assert to_pg_locks(number(*KEY)) in held(observer)
        block.__exit__(None, None, None)
        assert held(observer) == {}

    def test_blocks_of_two_aliases_may_be_left_in_any_order(self, observer):
        first, second = advisory_lock("a"), advisory_lock("b", using="other")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert held(observer) == {}
        assert not connection.in_atomic_block
        assert connections["other"].in_atomic_block
        second.__exit__(None, None, None)
        assert not connections["other"].in_atomic_block


class TestThreads:
    def test_one_object_works_in_many_threads(self):
        """Configuration only: each entry leaves its record on its own thread's connection."""
        block = advisory_lock(*KEY)
        seen, errors = [], []
        inside = threading.Semaphore(0)

        def run():
            try:
                for _ in range(20):
                    with block as lock:
                        seen.append(lock.key_id)
            except Exception as error:  # noqa: BLE001 - shown below
                errors.append(error)
            finally:
                connections.close_all()
                inside.release()

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert seen == [number(*KEY)] * 80
