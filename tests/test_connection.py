"""core/connection: when the fast path is taken, and what replaces it otherwise."""

import functools
import importlib
import os
import pkgutil
import re
import signal
import sys
import threading
from datetime import UTC, datetime
from io import StringIO
from types import FunctionType, SimpleNamespace
from zoneinfo import ZoneInfo

import psycopg
import pytest
from django.core.management import call_command
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    Error,
    OperationalError,
    connection,
    connections,
    router,
    transaction,
)
from django.db.backends import utils
from django.db.backends.postgresql.base import DatabaseWrapper, ServerBindingCursor
from django.test.utils import CaptureQueriesContext

from django_dblock import (
    OpenTransaction,
    advisory_lock,
    advisory_locks,
    fenced_lock,
    inspect,
    purge_fenced_locks,
    run_once,
    sql,
)
from django_dblock.core import replication, simple_query
from django_dblock.core.connection import (
    COMMIT_METHODS,
    CURSOR_METHODS,
    DRIVER_METHODS,
    WRAPPER_METHODS,
    alias_of,
    cancel_if_running,
    caused_by,
    connection_for,
    dedicated,
    drop_if_dead,
    fast_driver,
    fetch,
    in_testcase,
    interruption_of_commit,
    positional,
    unwrapped,
)
from django_dblock.core.replication import watch_commits
from django_dblock.doctor.examine import examine
from django_dblock.fencing import store
from django_dblock.fencing.operations import count_idle_fenced_locks
from django_dblock.models import FencedLock
from tests.app.models import Counter
from tests.helpers import observe
from tests.helpers.backends import Proxy

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


@pytest.fixture
def wrapper():
    """Django's connection itself, connected."""
    connection.ensure_connection()
    return connections[DEFAULT_DB_ALIAS]


@pytest.fixture
def of_class(wrapper):
    """Give the connection another class, as a backend of that name would have it."""
    before = type(wrapper)

    def change(name, **attributes):
        wrapper.__class__ = type(name, (before,), attributes)

    yield change
    wrapper.__class__ = before


def overriding(name):
    """A method that does what Django's does."""

    if name == "queries_logged":
        return property(lambda self: super(type(self), self).queries_logged)

    def method(self, *args, **kwargs):
        return getattr(super(type(self), self), name)(*args, **kwargs)

    return method


def passing_on(function):
    """Somebody's wrapper around a function."""

    @functools.wraps(function)
    def patch(*args, **kwargs):
        return function(*args, **kwargs)

    return patch


class Equal:
    """A wrapper that is equal to what it wraps, as those of the library wrapt are."""

    def __init__(self, wrapped):
        self.__wrapped__ = wrapped

    def __eq__(self, other):
        return self.__wrapped__ == other

    def __hash__(self):
        return hash(self.__wrapped__)

    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)

    def __get__(self, instance, owner):
        return Equal(self.__wrapped__.__get__(instance, owner))


class TestFastPath:
    def test_django_backend_takes_the_fast_path(self, wrapper):
        assert fast_driver(wrapper) is wrapper.connection

    def test_harmless_subclass_takes_the_fast_path(self, wrapper, of_class):
        of_class("Passwords", get_connection_params=overriding("get_connection_params"))
        assert fast_driver(wrapper)

    @pytest.mark.parametrize("name", WRAPPER_METHODS)
    def test_overridden_method_prevents_the_fast_path(self, wrapper, of_class, name, statements):
        of_class("Backend", **{name: overriding(name)})
        assert fast_driver(wrapper) is None
        with transaction.atomic():
            Counter.objects.count()
            with advisory_lock("a"), advisory_locks(["b", "c"]):
                pass

    @pytest.mark.parametrize("name", WRAPPER_METHODS)
    def test_class_patch_prevents_the_fast_path(self, wrapper, monkeypatch, name):
        original = getattr(DatabaseWrapper, name)
        is_property = name == "queries_logged"
        patch = property(passing_on(original.fget)) if is_property else passing_on(original)
        monkeypatch.setattr(DatabaseWrapper, name, patch)
        assert fast_driver(wrapper) is None
        monkeypatch.undo()
        assert fast_driver(wrapper)

    @pytest.mark.parametrize("name", [name for name in WRAPPER_METHODS if name != "queries_logged"])
    def test_instance_patch_prevents_the_fast_path(self, wrapper, name):
        bound = getattr(wrapper, name)
        try:
            setattr(wrapper, name, passing_on(bound))
            assert fast_driver(wrapper) is None
            setattr(wrapper, name, getattr(connections["other"], name))
            assert fast_driver(wrapper) is None
            setattr(wrapper, name, bound)  # as Django's test cases put it back
            assert fast_driver(wrapper)
        finally:
            del vars(wrapper)[name]

    @pytest.mark.parametrize("name", CURSOR_METHODS)
    def test_patched_cursor_wrapper_prevents_the_fast_path(self, wrapper, monkeypatch, name):
        patch = passing_on(getattr(utils.CursorWrapper, name))
        monkeypatch.setattr(utils.CursorWrapper, name, patch)
        assert fast_driver(wrapper) is None
        with advisory_lock("a"):
            pass

    @pytest.mark.parametrize("name", DRIVER_METHODS)
    def test_patched_driver_prevents_the_fast_path(self, wrapper, monkeypatch, name):
        patch = passing_on(getattr(psycopg.Connection, name))
        monkeypatch.setattr(psycopg.Connection, name, patch)
        assert fast_driver(wrapper) is None
        monkeypatch.undo()
        bound = getattr(wrapper.connection, name)
        monkeypatch.setattr(wrapper.connection, name, passing_on(bound), raising=False)
        assert fast_driver(wrapper) is None

    def test_patched_commit_of_the_driver_keeps_commit_from_travelling(self, wrapper, monkeypatch):
        patch = passing_on(psycopg.Connection.commit)
        monkeypatch.setattr(psycopg.Connection, "commit", patch)
        assert fast_driver(wrapper, commits=True) is None
        assert fast_driver(wrapper)

    def test_patched_driver_cursor_prevents_the_fast_path(self, wrapper, monkeypatch):
        monkeypatch.setattr(psycopg.Cursor, "execute", passing_on(psycopg.Cursor.execute))
        assert fast_driver(wrapper) is None

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (DatabaseWrapper, "_cursor"),
            (utils.CursorWrapper, "execute"),
            (psycopg.Connection, "wait"),
            (psycopg.Cursor, "execute"),
        ],
    )
    def test_wrapper_that_equals_what_it_wraps_prevents_it(self, wrapper, monkeypatch, owner, name):
        assert fast_driver(wrapper)
        monkeypatch.setattr(owner, name, Equal(getattr(owner, name)))
        assert fast_driver(wrapper) is None

    def test_cursor_class_that_equals_psycopgs_prevents_it(self, wrapper):
        factory = wrapper.connection.cursor_factory
        wrapper.connection.cursor_factory = Equal(factory)
        try:
            assert fast_driver(wrapper) is None
        finally:
            wrapper.connection.cursor_factory = factory

    def test_execute_wrapper_prevents_the_fast_path(self, wrapper):
        with connection.execute_wrapper(lambda execute, *args: execute(*args)):
            assert fast_driver(wrapper) is None

    def test_driver_proxy_prevents_the_fast_path(self, wrapper):
        driver, wrapper.connection = wrapper.connection, Proxy(wrapper.connection)
        try:
            assert fast_driver(wrapper) is None
        finally:
            wrapper.connection = driver

    def test_pipeline_mode_prevents_the_fast_path(self, wrapper):
        with wrapper.connection.pipeline():
            assert fast_driver(wrapper) is None
        assert fast_driver(wrapper)

    def test_other_client_encoding_prevents_the_fast_path(self, wrapper):
        """The message is UTF-8. In another encoding a key would be another key."""
        fetch(wrapper, "SET client_encoding TO 'LATIN1'", {})
        try:
            assert fast_driver(wrapper) is None
            assert run_once("é", work=lambda: "ü") == "ü"
        finally:
            wrapper.close()
        assert run_once("é", work=lambda: "a second time") == "ü"

    def test_closed_connection_has_no_fast_path(self, wrapper):
        wrapper.close()
        assert fast_driver(wrapper) is None

    def test_duck_typed_connection_prevents_the_fast_path(self, wrapper):
        thing = SimpleNamespace(
            connection=wrapper.connection, execute_wrappers=[], Database=psycopg
        )
        assert fast_driver(thing) is None

    def test_list_has_every_method_of_the_ordinary_path(self, wrapper):
        """Traced, so that a method that a new Django adds to the way is found here."""
        seen = set()

        def trace(frame, event, argument):
            code = frame.f_code
            owner = frame.f_locals.get("self")
            if event == "call" and owner is wrapper and "/django/db/backends/" in code.co_filename:
                seen.add(code.co_name)

        def ordinary(debug):
            wrapper.force_debug_cursor = debug
            with transaction.atomic():
                Counter.objects.count()
                sys.setprofile(trace)
                try:
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT %s", [1])
                finally:
                    sys.setprofile(None)
                    wrapper.force_debug_cursor = False

        ordinary(debug=True)
        ordinary(debug=False)
        # They answer from memory, or are called on both paths.
        harmless = {"allow_thread_sharing", "wrap_database_errors", "timezone", "pool"}
        assert seen - harmless == set(WRAPPER_METHODS)

    @pytest.mark.parametrize("name", COMMIT_METHODS)
    def test_overridden_commit_keeps_commit_from_travelling(
        self, wrapper, of_class, name, statements
    ):
        """What runs before COMMIT finds the transaction open, so its writes are committed, too."""

        def before_commit(self):
            before = self.get_autocommit()
            with self.cursor() as cursor:
                cursor.execute("UPDATE app_counter SET value = value + 1")
            getattr(super(type(self), self), name)()
            assert not before, "the transaction was open"

        counter = Counter.objects.create(name="commits")
        assert fast_driver(wrapper, commits=True)
        of_class("Backend", **{name: before_commit})
        assert fast_driver(wrapper, commits=True) is None
        assert fast_driver(wrapper), "it does not stand in the way of a lock"
        with statements() as sent:
            assert run_once("pay", work=lambda: 1) == 1
        *_, recorded, update, commit = [query["sql"] for query in sent]
        assert "COMMIT" not in recorded
        assert (update, commit) == ("UPDATE app_counter SET value = value + 1", "COMMIT")
        counter.refresh_from_db()
        assert counter.value == 1

    def test_every_watched_method_exists(self):
        for name in WRAPPER_METHODS + COMMIT_METHODS:
            method = getattr(DatabaseWrapper, name)
            assert isinstance(method, FunctionType | property), name


class TestAlias:
    def test_using_goes_before_setting_before_router(self, settings, monkeypatch):
        monkeypatch.setattr(router, "db_for_write", lambda model: "other")
        assert alias_of(None) == "default"
        assert alias_of(None, FencedLock) == "other"
        settings.DBLOCK_DATABASE = "sqlite"
        assert alias_of(None, FencedLock) == "sqlite"
        assert alias_of("default", FencedLock) == "default"
        assert connection_for("default").alias == "default"


class TestOrdinaryCursor:
    def test_placeholders_become_positional(self):
        statement = "SELECT %(a)s, '%%', %(b)s, %(a)s"
        assert positional(statement, {"a": 1, "b": 2}) == ("SELECT %s, '%%', %s, %s", [1, 2, 1])
        assert positional("SELECT '%'", {}) == ("SELECT '%'",)

    def test_escaped_percent_sign_begins_no_placeholder(self):
        """A schema may have this name."""
        statement = 'SELECT "%%(a)s", %(b)s, %%%(a)s'
        assert positional(statement, {"a": 1, "b": 2}) == ('SELECT "%%(a)s", %s, %%%s', [2, 1])

    def test_statements_have_no_stray_percent_sign(self):
        stray = re.compile(r"%(?!s|\(\w+\)s)")
        found = [
            (module.name, name)
            for module in pkgutil.iter_modules(sql.__path__)
            for name, text in vars(importlib.import_module(f"{sql.__name__}.{module.name}")).items()
            if not name.startswith("_") and isinstance(text, str)
            if stray.search(text.replace("%%", ""))
        ]
        assert found == []

    def test_rows_are_returned(self, wrapper):
        assert fetch(wrapper, "SELECT %(a)s::int, %(b)s::text", {"a": 1, "b": "x"}) == [(1, "x")]
        assert fetch(wrapper, "SET application_name = 'x'", {}) == []
        wrapper.close()

    def test_errors_are_django_errors(self, wrapper):
        with pytest.raises(Error) as caught:
            fetch(wrapper, "SELECT nothing", {})
        assert caused_by(caught.value, psycopg.errors.UndefinedColumn)
        assert not caused_by(caught.value, psycopg.errors.UniqueViolation)

    def test_testcase_is_recognised(self, wrapper):
        assert not in_testcase(wrapper)
        with transaction.atomic():
            assert not in_testcase(wrapper)
            wrapper.atomic_blocks[-1]._from_testcase = True
            assert in_testcase(wrapper)


VALUES = {
    "text": "it's 100 % of a\\b",
    "negative": -1,
    "large": 2**70,
    "number": 0.1,
    "nothing": None,
    "yes": True,
    "several": [1, 2],
    "names": ["a'b", "c"],
    "moment": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
}
STATEMENT = "SELECT current_query(), '%%', now(), " + ", ".join(f"%({name})s" for name in VALUES)


class TestDirectly:
    """A statement that commits by itself, without the two cursors."""

    @pytest.fixture
    def ordinary(self, monkeypatch):
        """The statements that went through the ordinary cursor."""
        seen = []

        def noted(connection, statement, *more):
            seen.append(statement)
            return fetch(connection, statement, *more)

        monkeypatch.setattr(simple_query, "fetch", noted)
        return seen

    def run(self, wrapper, statement, parameters):
        rows = []
        simple_query.fetch_directly(wrapper, statement, parameters, rows)
        return rows

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_text_and_rows_are_those_of_the_ordinary_cursor(
        self, wrapper, ordinary, settings, use_tz
    ):
        settings.USE_TZ = use_tz
        wrapper.close()
        wrapper.connect()
        [(*expected,)] = fetch(wrapper, STATEMENT, VALUES)
        [(*found,)] = self.run(wrapper, STATEMENT, VALUES)
        wrapper.close()
        assert ordinary == []
        before, now = expected.pop(2), found.pop(2)
        assert found == expected
        assert now.tzinfo == before.tzinfo
        assert (now.tzinfo is not None) is use_tz

    def test_statement_without_rows_or_parameters(self, wrapper, ordinary):
        assert self.run(wrapper, "SET application_name = '%'", {}) == []
        assert ordinary == []
        assert self.run(wrapper, "SHOW application_name", {}) == [("%",)]
        wrapper.close()

    def test_lease_takes_it(self, wrapper, ordinary):
        with fenced_lock("a", ttl=30) as lease:
            lease.renew()
        assert ordinary == []

    def test_text_of_a_statement_that_is_logged_is_djangos(self, wrapper, ordinary):
        with CaptureQueriesContext(wrapper) as queries:
            self.run(wrapper, "SELECT %(a)s", {"a": "shown"})
        assert [query["sql"] for query in queries] == ["SELECT 'shown'"]
        assert ordinary == ["SELECT %(a)s"]

    def test_transaction_takes_the_ordinary_cursor(self, wrapper, ordinary):
        with transaction.atomic():
            self.run(wrapper, "SELECT 1", {})
        assert ordinary == ["SELECT 1"]

    def test_server_side_binding_takes_the_ordinary_cursor(self, wrapper, ordinary):
        """The driver prepares statements there."""
        factory, wrapper.connection.cursor_factory = (
            wrapper.connection.cursor_factory,
            ServerBindingCursor,
        )
        try:
            assert self.run(wrapper, "SELECT %(a)s::int", {"a": 1}) == [(1,)]
        finally:
            wrapper.connection.cursor_factory = factory
        assert ordinary == ["SELECT %(a)s::int"]

    def test_other_time_zone_takes_the_ordinary_cursor(self, wrapper, ordinary, monkeypatch):
        """Django gives its cursor a loader of its own then."""
        monkeypatch.setattr(wrapper, "timezone", ZoneInfo("Asia/Tokyo"))
        [(now,)] = self.run(wrapper, "SELECT now()", {})
        assert ordinary == ["SELECT now()"]
        assert now.tzinfo == wrapper.timezone

    def test_apps_that_are_not_ready_take_the_ordinary_cursor(self, wrapper, ordinary, monkeypatch):
        """Django's cursor warns."""
        monkeypatch.setattr(simple_query.apps, "ready", False)
        with pytest.warns(RuntimeWarning, match="during app initialization"):
            self.run(wrapper, "SELECT 1", {})
        assert ordinary == ["SELECT 1"]

    def test_errors_are_those_of_the_ordinary_cursor(self, wrapper, ordinary):
        for statement, parameters in [
            ("SELECT nothing", {}),
            ("SELECT %(a)s", {"a": "\0"}),
            ("SELECT %(a)s", {"a": object()}),
        ]:
            with pytest.raises(Error) as expected:
                fetch(wrapper, statement, parameters)
            with pytest.raises(type(expected.value)) as found:
                self.run(wrapper, statement, parameters)
            assert type(found.value.__cause__) is type(expected.value.__cause__)
            assert str(found.value) == str(expected.value)
        assert ordinary == []

    def test_failed_statement_drops_a_dead_connection(self, wrapper, observer, ordinary):
        pid = wrapper.connection.info.backend_pid
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(OperationalError):
            self.run(wrapper, "SELECT 1", {})
        assert wrapper.connection is None
        assert ordinary == []
        assert self.run(wrapper, "SELECT 1", {}) == [(1,)]

    def test_connection_that_died_before_is_replaced(self, wrapper, observer):
        """The driver knows that it is dead since the statement that failed."""
        pid = wrapper.connection.info.backend_pid
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(OperationalError), wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert wrapper.connection.closed
        assert self.run(wrapper, "SELECT 1", {}) == [(1,)]
        assert wrapper.connection.info.backend_pid != pid

    def test_other_thread_is_refused(self, wrapper):
        caught = []

        def other():
            with pytest.raises(DatabaseError) as error:
                self.run(wrapper, "SELECT 1", {})
            caught.append(str(error.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "can only be used in that same thread" in caught[0]


class TestDeadConnection:
    @pytest.fixture
    def dead(self, wrapper, observer):
        """A connection whose server has gone, and whose driver knows it."""
        pid = wrapper.connection.info.backend_pid
        observer.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
        with pytest.raises(OperationalError), wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert wrapper.connection.closed
        return wrapper

    @pytest.mark.parametrize(
        "block", [lambda: advisory_lock("a"), lambda: advisory_locks(["a", "b"])]
    )
    def test_first_lock_reconnects_a_dead_connection(self, dead, block):
        with block():
            pass

    @pytest.mark.parametrize(
        "read",
        [
            inspect.advisory_locks,
            inspect.fenced_leases,
            inspect.unfinished_requests,
            inspect.count_unfinished_requests,
            lambda: count_idle_fenced_locks(idle=3600),
            lambda: purge_fenced_locks(idle=3600),
        ],
        ids=["locks", "leases", "requests", "count-requests", "count-idle", "purge"],
    )
    def test_list_and_purge_reconnect_a_dead_connection(self, dead, read):
        assert not read()

    @pytest.mark.parametrize("kind", ["fenced", "latches", "idempotency"])
    def test_list_of_one_kind_reconnects_a_dead_connection(self, dead, kind):
        out = StringIO()
        call_command("dblock", "list", "--kind", kind, stdout=out)
        assert out.getvalue() == "Nothing matches.\n"

    def test_doctor_reconnects_a_dead_connection(self, dead):
        assert "connection" not in {finding.id for finding in examine()}

    def test_first_statement_reconnects_a_dead_connection(self, dead):
        assert fetch(dead, "SELECT %(a)s::int", {"a": 1}) == [(1,)]

    def test_failed_statement_drops_a_dead_connection(self, wrapper, observer):
        pid = wrapper.connection.info.backend_pid
        observer.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
        with pytest.raises(OperationalError):
            fetch(wrapper, "SELECT 1", {})
        assert wrapper.connection is None

    def test_transaction_is_not_split(self, wrapper, observer):
        pid = wrapper.connection.info.backend_pid
        with pytest.raises(OperationalError), transaction.atomic():
            observer.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
            with pytest.raises(OperationalError):
                fetch(wrapper, "SELECT 1", {})
            assert not drop_if_dead(wrapper)
            Counter.objects.count()

    def test_manual_transaction_is_not_split(self, wrapper, observer):
        wrapper.set_autocommit(False)
        try:
            pid = wrapper.connection.info.backend_pid
            observer.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
            with pytest.raises(OperationalError):
                fetch(wrapper, "SELECT 1", {})
            assert not drop_if_dead(wrapper)
        finally:
            wrapper.close()


class TestHealthChecks:
    """CONN_HEALTH_CHECKS: Django's cursor replaces a connection that fails its check."""

    @pytest.fixture(autouse=True)
    def failing(self, wrapper, observer, monkeypatch):
        """The driver doesn't know yet that its connection is dead."""
        monkeypatch.setitem(wrapper.settings_dict, "CONN_HEALTH_CHECKS", True)
        monkeypatch.setitem(wrapper.settings_dict, "CONN_MAX_AGE", None)
        wrapper.close()
        wrapper.connect()
        pid = wrapper.connection.info.backend_pid
        observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        assert not wrapper.connection.closed
        wrapper.close_if_unusable_or_obsolete()  # as at the start of a request
        assert wrapper.connection
        yield
        wrapper.close()

    def test_lease_hears_the_connection_that_grants_it(self, wrapper, monkeypatch):
        heard = []
        real = store.unreplicated

        def unreplicated(driver):
            heard.append(driver)
            return real(driver)

        monkeypatch.setattr(store, "unreplicated", unreplicated)
        with fenced_lock("a", ttl=30):
            assert heard[0] is wrapper.connection

    def test_watch_hears_the_connection_that_commits(self, wrapper):
        watch_commits(wrapper)
        with transaction.atomic():
            assert wrapper.connection in replication._watches

    def test_watch_that_was_begun_before_moves_on(self, wrapper):
        watched = wrapper.connection
        replication._watches[watched] = replication.CommitWatch()
        watch_commits(wrapper)
        assert wrapper.connection is not watched
        assert wrapper.connection in replication._watches


class TestTransactionPastDjango:
    """BEGIN and psycopg's transaction() open a transaction that Django doesn't know of."""

    def test_lease_in_psycopgs_transaction_is_refused(self, wrapper):
        with wrapper.connection.transaction(), pytest.raises(OpenTransaction):
            fenced_lock("a", ttl=30).__enter__()

    def test_lease_after_begin_is_refused(self, wrapper):
        try:
            fetch(wrapper, "BEGIN", {})
            with pytest.raises(OpenTransaction):
                fenced_lock("a", ttl=30).__enter__()
            with pytest.raises(Error, match="division by zero"):
                fetch(wrapper, "SELECT 1/0", {})
            with pytest.raises(OpenTransaction):
                fenced_lock("a", ttl=30).__enter__()
        finally:
            fetch(wrapper, "ROLLBACK", {})

    def test_lease_without_the_drivers_autocommit_is_refused(self, wrapper):
        wrapper.connection.autocommit = False
        try:
            with pytest.raises(OpenTransaction):
                fenced_lock("a", ttl=30).__enter__()
        finally:
            wrapper.connection.autocommit = True

    def test_release_after_begin_is_refused(self, wrapper):
        with pytest.raises(OpenTransaction) as caught, fenced_lock("a", ttl=30):
            fetch(wrapper, "BEGIN", {})
        fetch(wrapper, "ROLLBACK", {})
        assert caught.value.__notes__ == [
            "a was not released. It is no longer renewed, and expires within 30 s."
        ]

    def test_psycopgs_transaction_inside_the_block_is_fine(self, wrapper):
        with fenced_lock("a", ttl=30) as lease, wrapper.connection.transaction():
            Counter.objects.create(name="a")
        assert not lease.lost


class Outer:
    """A proxy without ``__wrapped__`` whose methods are its own, as some pools have."""

    def __init__(self, inner):
        self._inner = inner

    def fileno(self):
        return self._inner.fileno()


class TestDriver:
    def test_psycopg_connection_is_returned(self, wrapper):
        assert unwrapped(wrapper.connection) is wrapper.connection

    def test_proxies_are_unwrapped(self, wrapper):
        driver = wrapper.connection
        assert unwrapped(Proxy(Proxy(driver))) is driver
        assert unwrapped(SimpleNamespace(__wrapped__=driver)) is driver

    def test_opaque_wrapper_has_no_driver(self, wrapper):
        assert unwrapped(Outer(wrapper.connection)) is None
        assert unwrapped(object()) is None
        endless = SimpleNamespace()
        endless.__wrapped__ = SimpleNamespace(__wrapped__=endless)
        assert unwrapped(endless) is None


class TestCancel:
    """What an exception has interrupted; tests/test_advisory.py shows it with a real signal."""

    def test_closed_connection_is_left_alone(self, wrapper):
        wrapper.connection.close()
        cancel_if_running(wrapper)
        wrapper.close()

    def test_uncancellable_connection_is_closed(self, wrapper, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError

        wrapper.connection.pgconn.send_query(b"SELECT pg_sleep(5)")
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.waiting, "wait", fail)
            cancel_if_running(wrapper)
        assert wrapper.connection.closed
        wrapper.close()

    def test_unresponsive_server_is_disconnected(self, wrapper, observer, monkeypatch):
        pid = wrapper.connection.info.backend_pid
        wrapper.connection.pgconn.send_query(b"SELECT pg_sleep(60)")
        asked = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
        observe.until(lambda: observer.execute(asked, [pid]).fetchone() == ("PgSleep",), "it runs")
        monkeypatch.setattr("django_dblock.core.connection._LONGEST_CANCEL", 0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            cancel_if_running(wrapper)
            assert wrapper.connection.closed
        finally:
            os.kill(pid, signal.SIGCONT)
        wrapper.close()


class TestInterruptionOfCommit:
    """tests/fencing/test_interrupted.py shows it with a real signal."""

    def test_other_errors_are_left_alone(self, wrapper):
        assert interruption_of_commit(wrapper, Error("other")) is None
        wrapper.close()
        assert interruption_of_commit(wrapper, KeyboardInterrupt()) is None


class TestDedicated:
    def test_dedicated_connection_is_not_shared(self, wrapper, of_class, monkeypatch):
        def from_the_pool(self, parameters):
            raise AssertionError("the application's pool was asked")

        of_class(
            "Pooled",
            get_new_connection=from_the_pool,
            _cursor=from_the_pool,
            get_connection_params=lambda self: {
                **DatabaseWrapper.get_connection_params(self),
                "MAX_CONNS": 4,
            },
        )
        monkeypatch.setitem(wrapper.settings_dict["OPTIONS"], "pool", True)
        own = dedicated("default")
        try:
            assert own is not connections["default"]
            assert fetch(own, "SELECT 1", {}) == [(1,)]
            assert own.connection is not wrapper.connection
            assert own.pool is None
        finally:
            own.close()

    def test_current_password_is_used(self, wrapper, of_class):
        of_class(
            "Passwords",
            get_connection_params=lambda self: {
                **DatabaseWrapper.get_connection_params(self),
                "application_name": "asked",
            },
        )
        own = dedicated("default")
        try:
            assert fetch(own, "SHOW application_name", {}) == [("asked",)]
        finally:
            own.close()
