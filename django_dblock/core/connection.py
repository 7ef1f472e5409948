"""Django's connection and what other packages put around it: which connection to use, and how.

Other packages stand between this package and the driver. Tenant packages override ``_cursor()``,
APM agents replace the driver by a proxy, history packages rewrite statements in
``execute_wrappers``, pools lend connections. The rule that keeps all of them working:

    A method of Django or of the driver is skipped only if it is Django's or the driver's own, and
    nothing wraps it. Else the ordinary cursor is used, with positional parameters, and gives the
    same result.

:func:`fast_driver` is the one place that decides it. :func:`fetch` is the ordinary cursor.
"""

import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from operator import attrgetter, is_
from types import FunctionType
from typing import TYPE_CHECKING, Any

import django
from django.db import DEFAULT_DB_ALIAS, Error, NotSupportedError, connections, router
from django.db.backends import utils
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from django_dblock.conf import conf
from django_dblock.core.clock import monotonic
from django_dblock.exceptions import UnsupportedDatabase

if TYPE_CHECKING:  # importing psycopg costs 60 ms that a command without a database need not pay
    import psycopg


# Which connection ------------------------------------------------------------------------------


def alias_of(using: str | None, model: type[Model] | None = None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else the alias where the router writes the model.

    Without a model the last alias is ``default``, because advisory locks belong to no table.
    """
    if alias := using or conf.database:
        return alias
    return DEFAULT_DB_ALIAS if model is None else router.db_for_write(model)


def connection_for(using: str | None, model: type[Model] | None = None) -> BaseDatabaseWrapper:
    """Return the connection of :func:`alias_of`. Sends nothing.

    Raises:
        UnsupportedDatabase: the engine is not PostgreSQL.
        ConnectionDoesNotExist: there is no such alias.
        NotSupportedError: as :func:`refuse_pipeline`.
    """
    connection = connections[alias_of(using, model)]
    if connection.vendor != "postgresql":
        raise UnsupportedDatabase(using=connection.alias, engine=connection.display_name)
    refuse_pipeline(connection)
    return connection


def refuse_pipeline(connection: BaseDatabaseWrapper) -> None:
    """Refuse psycopg's pipeline mode. Sends nothing.

    In a pipeline ``cursor.execute()`` returns before the server has answered. Errors come with a
    later statement, ``rowcount`` is -1, and in autocommit nothing is committed until the pipeline
    is synchronized. So nobody could say that a lock is held or that a row was written.

    Raises:
        NotSupportedError: the connection is in pipeline mode.
    """
    pgconn = getattr(connection.connection, "pgconn", None)
    if pgconn is not None and pgconn.pipeline_status:
        raise NotSupportedError(
            f"The connection {connection.alias!r} is in psycopg's pipeline mode, in which nobody "
            f"knows yet whether a statement has worked. Nothing was sent. Do this before "
            f"pipeline() or after it; a pipeline that begins and ends inside the block of a lock "
            f"is fine."
        )


def dedicated(alias: str) -> BaseDatabaseWrapper:
    """Return a new connection to the alias' database that belongs to the caller alone.

    Guaranteed: the connection is not connected yet, never belongs to a pool, is not in
    ``connections``, and no other backend's ``_cursor()`` runs on it. The alias' own backend gives
    host, user and password at each connect, so passwords may rotate.

    Not guaranteed: the search path. It is the server's default, so qualify the tables.

    Args:
        alias: the database alias.
    """
    configured = connections[alias].copy()
    configured.settings_dict["AUTOCOMMIT"] = True
    configured.settings_dict["OPTIONS"].pop("pool", None)
    wrapper: BaseDatabaseWrapper = _dedicated_class()(configured)
    return wrapper


@cache
def _dedicated_class() -> Any:
    from django.db.backends.postgresql.base import DatabaseWrapper
    from psycopg import pq

    # Backends with a pool add options that libpq would refuse.
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    known |= {"autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory"}

    class DedicatedConnection(DatabaseWrapper):
        """Django's own backend, with the connection parameters of another backend."""

        pool = None

        def __init__(self, configured: BaseDatabaseWrapper) -> None:
            super().__init__(configured.settings_dict, configured.alias)
            self._configured = configured

        def get_connection_params(self) -> dict[str, Any]:
            given = self._configured.get_connection_params()
            return {name: value for name, value in given.items() if name in known}

    return DedicatedConnection


# Whose transaction -----------------------------------------------------------------------------


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the caller has a transaction open. Sends nothing."""
    return connection.in_atomic_block or not connection.get_autocommit()


def joins(connection: BaseDatabaseWrapper) -> bool:
    """Return :func:`in_transaction`, after :func:`drop_if_dead`: what a block does at its start."""
    drop_if_dead(connection)
    return in_transaction(connection)


def in_testcase(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the innermost atomic block is one that TestCase opened around a test."""
    blocks: list[Any] = connection.atomic_blocks
    return bool(blocks) and blocks[-1]._from_testcase  # noqa: SLF001 - Django's own exemption


def in_callers_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a statement sent now is not committed at once. Sends nothing.

    A transaction that was begun without Django counts, by ``BEGIN`` or by psycopg's
    ``transaction()``; so does a driver without autocommit, which begins one. The transaction of
    TestCase does not count, as ``atomic(durable=True)`` does not count it.

    Raises:
        NotSupportedError: the connection is in pipeline mode; see :func:`refuse_pipeline`.
    """
    refuse_pipeline(connection)
    if in_testcase(connection):
        return False
    if in_transaction(connection):
        return True
    driver = connection.connection
    pgconn = getattr(driver, "pgconn", None)
    return pgconn is not None and (pgconn.transaction_status in _OPEN or not driver.autocommit)


_INERROR = 3
_OPEN = (2, _INERROR)
"""INTRANS and INERROR of ``psycopg.pq.TransactionStatus``."""


# The ordinary cursor ---------------------------------------------------------------------------


def fetch(
    connection: BaseDatabaseWrapper,
    statement: str,
    parameters: Mapping[str, Any],
    into: list[Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Run one statement through Django's cursor; return its rows, [] if it returns none.

    In autocommit a connection that is known to be dead is replaced first. A connection that died
    during the statement is closed, so that the next call connects again. An error inside
    ``transaction.atomic()`` marks the block for rollback.

    Args:
        connection: Django's connection.
        statement: with ``%(name)s`` for a parameter; sent with positional parameters.
        parameters: the values.
        into: the list for the rows. If it is given and an exception interrupts the statement, such
            as a signal handler's, the statement is cancelled. If it has run to its end all the
            same, the list has its rows when the exception is raised.

    Raises:
        django.db.Error: the statement failed.
        NotSupportedError: the connection is in pipeline mode; see :func:`refuse_pipeline`.
    """
    refuse_pipeline(connection)
    drop_if_dead(connection)
    rows = [] if into is None else into
    try:
        with connection.cursor() as cursor:
            try:
                cursor.execute(*positional(statement, parameters))
                if cursor.description:  # execute wrappers may have run more than one statement
                    rows += cursor.fetchall()
            except Error:
                raise
            except BaseException:
                if into is not None:
                    end_interrupted(connection, cursor, into)
                raise
    except Error as error:
        mark_for_rollback(connection, error)
        drop_if_dead(connection)
        raise
    return rows


def mark_for_rollback(connection: BaseDatabaseWrapper, error: BaseException) -> None:
    """Let the open atomic block end with a rollback, because a statement has aborted it.

    Otherwise, if the caller catches the error, leaving the block sends a COMMIT, which the server
    silently turns into a rollback, and Django runs the on_commit hooks.
    """
    if connection.in_atomic_block:  # the same as django.db.transaction.mark_for_rollback_on_error
        connection.needs_rollback = True
        setattr(connection, "rollback_exc", error)  # noqa: B010 - the stubs don't know it


def is_aborted(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the server has aborted the transaction, so that COMMIT becomes ROLLBACK."""
    # That is so after a swallowed database error, also where Django's needs_rollback is not set.
    pgconn = getattr(connection.connection, "pgconn", None)
    return pgconn is not None and pgconn.transaction_status == _INERROR


def end_interrupted(connection: BaseDatabaseWrapper, cursor: Any, rows: list[Any]) -> None:
    """End a statement that an exception has interrupted; add the rows that it returned, if any.

    Args:
        connection: Django's connection.
        cursor: the open cursor that has run the statement.
        rows: receives the rows of the last result, as the cursor would return them.
    """
    with suppress(Exception):  # the exception that has interrupted the statement is raised
        if (result := cancel_if_running(connection)) is not None:
            rows += _loaded(connection, result)
        else:  # psycopg itself reads on after Ctrl-C and sys.exit()
            while cursor.nextset():
                pass
            if cursor.description:
                rows += cursor.fetchall()


def _loaded(connection: BaseDatabaseWrapper, result: Any) -> list[Any]:
    from psycopg.adapt import Transformer

    loader = Transformer(unwrapped(connection.connection))
    loader.set_pgresult(result)
    return loader.load_rows(0, result.ntuples, tuple)


def positional(
    statement: str, parameters: Mapping[str, Any]
) -> tuple[str, Sequence[Any]] | tuple[str]:
    """Return the arguments for ``cursor.execute``, with ``%s`` in the place of ``%(name)s``.

    Execute wrappers that add parameters add positional parameters, and psycopg does not let a
    statement mix the two kinds.
    """
    template, names = template_of(statement)
    return (template, [parameters[name] for name in names]) if names else (statement,)


_NAMED = re.compile(r"%%|%\((\w+)\)s")
"""A percent sign, which is written twice, or the placeholder of a named parameter."""


@lru_cache(maxsize=512)  # savepoints have a new name each
def template_of(statement: str) -> tuple[str, tuple[str, ...]]:
    """Return the statement with ``%s`` for each parameter, and the parameters' names in order."""
    template = _NAMED.sub(lambda found: "%s" if found[1] else found[0], statement)
    return template, tuple(filter(None, _NAMED.findall(statement)))


def drop_if_dead(connection: BaseDatabaseWrapper) -> bool:
    """Close a connection that the driver knows to be dead; return whether it did. Sends nothing.

    Django replaces a dead connection only between two requests. A loop outside of a request, as in
    a worker, would get "the connection is closed" at every try.

    Inside a transaction the connection is kept, although it is dead, so that the rest of the
    transaction is not run on a new connection.
    """
    driver = connection.connection
    if (
        driver is None
        or connection.in_atomic_block
        or not connection.autocommit
        or not driver.closed
    ):
        return False
    connection.close()
    return True


def discard_dead_in_pool(connection: BaseDatabaseWrapper) -> None:
    """Let Django's pool, if the alias has one, replace its dead connections.

    When the server has dropped one connection, it has often dropped all of them, for example at a
    restart. A pool without ``CONN_HEALTH_CHECKS`` would lend another dead connection.
    """
    if connection.settings_dict["OPTIONS"].get("pool"):
        pool: Any = getattr(connection, "pool")  # noqa: B009 - the stubs don't know it
        pool.check()


COCKROACH = b"crdb_version"
"""The parameter that CockroachDB reports when a session starts, and that a pooler passes on.

CockroachDB has PostgreSQL's advisory lock functions. Before 26.3 they lock nothing, and from 26.3
on a savepoint that is rolled back does not free the lock. So it is refused, and no statement has to
ask for ``version()``."""


def ready(connection: BaseDatabaseWrapper) -> Any:
    """Return the driver's connection that the next statement will use.

    A connection that is dead, or that fails Django's health check, is replaced now. Later, Django's
    cursor would replace it, and with it everything that was registered on it.

    Raises:
        UnsupportedDatabase: the server is CockroachDB.
    """
    drop_if_dead(connection)
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    driver = connection.connection
    if driver.pgconn.parameter_status(COCKROACH):
        raise UnsupportedDatabase(using=connection.alias, engine="CockroachDB")
    return driver


def interruption_of_commit(
    connection: BaseDatabaseWrapper, raised: BaseException
) -> BaseException | None:
    """Return the exception that has interrupted Django's COMMIT; None if none has.

    After an exception from a signal handler, Django raises the driver's refusal to change
    autocommit meanwhile, and leaves a connection of no use. This function makes it usable. Whether
    the transaction was committed is not known.

    Args:
        connection: Django's connection.
        raised: what the end of an outermost atomic block has raised.
    """
    from psycopg import Error as DriverError
    from psycopg.pq import TransactionStatus

    driver = unwrapped(connection.connection)
    if driver is None or driver.closed or connection.in_atomic_block:
        return None
    if driver.pgconn.transaction_status != TransactionStatus.ACTIVE:
        return None
    cancel_if_running(connection)  # no lock is held any more when its result is read
    connection.close()
    found: BaseException | None = raised
    while isinstance(found, Error | DriverError):
        found = found.__context__
    return None if found is raised else found


def caused_by(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Return whether Django's error was caused by one of these errors of the driver."""
    return isinstance(error.__cause__, kinds)


# The driver ------------------------------------------------------------------------------------


def unwrapped(driver: Any) -> "psycopg.Connection[Any] | None":
    """Return psycopg's own connection below transparent proxies; None if it can't be found.

    Args:
        driver: ``connection.connection``: psycopg's connection, or the proxy that an APM agent or
            a pool put around it.
    """
    from psycopg import Connection

    for _ in range(_MOST_PROXIES):
        # not isinstance(): a proxy may claim the class of the object that it wraps
        if issubclass(type(driver), Connection):
            found: psycopg.Connection[Any] = driver
            return found
        inner = getattr(driver, "__wrapped__", None)  # wrapt's proxies
        if inner is None:  # a method that the proxy passes on is bound to what it wraps
            inner = getattr(getattr(driver, "fileno", None), "__self__", driver)
        if inner is driver:
            return None
        driver = inner
    return None


_MOST_PROXIES = 10


def bounded(
    generator: Generator[Any, Any, Any],
    deadline: float,
    meanwhile: Callable[[], object] = lambda: None,
) -> Generator[Any, Any, Any]:
    """Drive a generator of psycopg, which waits without a limit, until a deadline.

    Args:
        generator: a generator for ``psycopg.waiting.wait`` or ``Connection.wait``.
        deadline: on the package's clock.
        meanwhile: called whenever the wait's interval has passed and the server was silent.

    Raises:
        TimeoutError: the server is silent at the deadline.
    """
    try:
        state = next(generator)
        while True:
            ready = yield state
            if not ready:
                meanwhile()
                if monotonic() > deadline:
                    raise TimeoutError("The server is silent.")
            state = generator.send(ready)
    except StopIteration as done:
        return done.value


def cancel_if_running(connection: BaseDatabaseWrapper) -> Any:
    """End a statement that an exception has interrupted; return the last result that it had.

    The result is psycopg's. It is None if no statement was running, or if it was cancelled.

    psycopg does so for Ctrl-C. After any other exception that a signal handler raises, such as
    Celery's soft time limit, the server would go on waiting, and would acquire a lock that no code
    uses.
    """
    from psycopg import generators, waiting
    from psycopg.pq import ExecStatus, TransactionStatus

    driver = unwrapped(connection.connection)
    if driver is None or driver.closed:
        return None
    pgconn = driver.pgconn
    if pgconn.transaction_status != TransactionStatus.ACTIVE:
        return None
    try:
        driver.cancel_safe(timeout=_LONGEST_CANCEL)
        reading = bounded(generators.execute(pgconn), monotonic() + _LONGEST_CANCEL)
        results = waiting.wait(reading, pgconn.socket, interval=_LOOK)
    except Exception:  # noqa: BLE001 - if the statement can't be cancelled, close the connection
        driver.close()
        return None
    # nearly always the error of a cancelled statement, which is dropped
    return next((found for found in results[-1:] if found.status == ExecStatus.TUPLES_OK), None)


_LONGEST_CANCEL = 5.0
"""Seconds to wait for the server, once for the cancellation and once for its effect."""

_LOOK = 0.1
"""Seconds between two looks at the clock, while the server is silent."""


def after_fork_in_child(act: Callable[[], object]) -> None:
    """Call a function in every child that is forked from now on; Windows has no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


# The fast path ---------------------------------------------------------------------------------

# What Django's ordinary cursor runs on the way to psycopg for one statement of a connection that is
# open. tests/test_connection.py overrides each method in turn, and compares the list with what a
# trace of the ordinary cursor visits.
WRAPPER_METHODS = (
    "_cursor",
    "_prepare_cursor",
    "close_if_health_check_failed",
    "create_cursor",
    "cursor",
    "ensure_connection",
    "make_cursor",
    "make_debug_cursor",
    "queries_logged",
    "validate_no_broken_transaction",
    "validate_thread_sharing",
)
# What runs before COMMIT, and may have something to do then. Django calls these methods also if
# COMMIT has travelled with a statement, but then they find no transaction.
COMMIT_METHODS = ("_commit", "commit")

CURSOR_METHODS = ("__init__", "__getattr__", "execute", "_execute", "_execute_with_wrappers")
DRIVER_METHODS = ("cursor", "wait")


class _Watched:
    """The methods of the backend and of the driver that must be Django's and psycopg's own."""

    def __init__(self, of_wrapper: tuple[str, ...], of_driver: tuple[str, ...]) -> None:
        self.wrapper_names = frozenset(of_wrapper)
        self.driver_names = frozenset(of_driver)
        self.of_wrapper = attrgetter(*of_wrapper)
        self.of_driver = attrgetter(*of_driver)
        self.judged: dict[type, tuple[tuple[Any, ...], bool]] = {}
        """The methods of the last call, by the backend's class, and whether they are own methods. A
        method that is patched later is another object, and is judged again."""


_TO_SEND = _Watched(WRAPPER_METHODS, DRIVER_METHODS)
_TO_COMMIT = _Watched((*WRAPPER_METHODS, *COMMIT_METHODS), (*DRIVER_METHODS, "commit"))
_cursor_methods = attrgetter(*CURSOR_METHODS)
_driver_cursor_methods = attrgetter("__init__", "execute", "fetchall", "close")


def fast_driver(
    connection: BaseDatabaseWrapper, *, commits: bool = False
) -> "psycopg.Connection[Any] | None":
    """Return psycopg's connection if Django's cursor may be skipped; else None.

    The cursor may be skipped if every method on the way is Django's or psycopg's own, on the class
    and on the instance, nothing is wrapped or patched, no execute wrappers are installed, and the
    driver is psycopg's own class, not in pipeline mode, and with the client encoding UTF8, which
    Django sets.

    Args:
        connection: Django's connection; if it is not connected, the result is None.
        commits: whether COMMIT is sent as well.
    """
    driver = connection.connection
    if driver is None or connection.execute_wrappers:
        return None
    plain: type[psycopg.Connection[Any]] = connection.Database.Connection  # type: ignore[attr-defined]
    backend = type(connection)
    watched = _TO_COMMIT if commits else _TO_SEND
    try:
        factory = driver.cursor_factory
        client_binding, server_binding = _cursor_factories()
        if (
            type(driver) is not plain
            or (factory is not client_binding and factory is not server_binding)
            or (
                not watched.wrapper_names.isdisjoint(vars(connection))
                and _is_patched(connection, watched.wrapper_names)
            )
            or not watched.driver_names.isdisjoint(vars(driver))
        ):
            return None
        methods = (
            *watched.of_wrapper(backend),
            *watched.of_driver(plain),
            *_cursor_methods(utils.CursorWrapper),
            *_driver_cursor_methods(factory),
        )
        # Compared by identity: the wrappers of agents are equal to what they wrap.
        judged = watched.judged.get(backend)
        if judged is None or not all(map(is_, judged[0], methods)):
            judged = watched.judged[backend] = methods, all(map(_is_own, methods))
        if (
            not judged[1]
            or driver.pgconn.pipeline_status
            or driver.pgconn.parameter_status(b"client_encoding") != b"UTF8"
        ):
            return None
    except (AttributeError, TypeError, connection.Database.Error):  # type: ignore[attr-defined]
        return None  # an object that only looks like a connection, or a closed connection
    fast: psycopg.Connection[Any] = driver
    return fast


def _is_patched(connection: BaseDatabaseWrapper, names: frozenset[str]) -> bool:
    """Return whether the instance has methods of these names that are not those of its class.

    Django's test cases take the methods of an alias away, and put them back on the instance.
    """
    state = vars(connection)
    return any(
        getattr(state[name], "__func__", None) is not getattr(type(connection), name)
        or state[name].__self__ is not connection
        for name in names.intersection(state)
    )


@cache
def _cursor_factories() -> tuple[type, type]:
    from django.db.backends.postgresql import base

    return base.Cursor, base.ServerBindingCursor


def _is_own(method: Any) -> bool:
    """Return whether this is a plain function from the files of Django and psycopg."""
    if isinstance(method, property):
        method = method.fget
    while type(method) is FunctionType and method.__code__.co_filename.startswith(_own_folders()):
        method = method.__dict__.get("__wrapped__")  # under a decorator of Django's
        if method is None:
            return True
    return False


@cache
def _own_folders() -> tuple[str, ...]:
    import psycopg

    folders = (path for module in (django, psycopg) for path in module.__path__)
    return tuple(f"{folder}{os.sep}" for folder in folders)
