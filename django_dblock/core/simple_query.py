"""Several statements in one message: one round trip to the server.

psycopg sends BEGIN in a message of its own, binds parameters one by one, and its extended protocol
takes one statement a message. All three cost more than a lock does. PostgreSQL's *simple query*
(manual, 54.2.2.1 "Multiple Statements in a Simple Query") takes several statements as one text;
each still sees its own snapshot, and after an error the rest is not run.

The message is text with quoted literals, and is sent without the driver's cursor. Django's cursor
wrappers see the statements with placeholders, and the parameters separately, as for any query; the
literals are inserted below the wrappers. :func:`django_dblock.core.connection.fast_driver` decides
whether the driver's cursor may be skipped. If it may not, the same statements are sent one by one
through Django's cursor, with positional parameters.

A statement that commits by itself is sent in the same way (:func:`fetch_directly`), because the two
cursors are most of its way through Django and psycopg. If it is sent often, the session prepares it
(:class:`_Session`).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from django.apps import apps
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import Cursor
from psycopg import abc, generators
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import DiagnosticField, Escaping, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

from django_dblock.conf import conf
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import (
    cancel_if_running,
    drop_if_dead,
    fast_driver,
    fetch,
    positional,
    refuse_pipeline,
    template_of,
)
from django_dblock.sql.advisory import BEGIN, COMMIT

Parameter: TypeAlias = str | bytes | int | list[int] | None
Rows: TypeAlias = list[tuple[Any, ...]]
Key = TypeVar("Key")

_TIMESTAMPTZ = psycopg.postgres.types["timestamptz"].oid


def send(
    connection: BaseDatabaseWrapper, *statements: str, parameters: Mapping[str, Parameter]
) -> Rows:
    """Run the statements as :func:`exchange` does; return the rows of the last that returns rows.

    Raises:
        django.db.Error: a statement failed.
    """
    results = exchange(connection, *statements, parameters=parameters)
    return results[-1] if results else []


def exchange(
    connection: BaseDatabaseWrapper,
    *statements: str,
    parameters: Mapping[str, Parameter],
    commits: bool = False,
) -> list[Rows]:
    """Run the statements, in one message if possible; return the rows of each with parameters.

    If Django and the driver would open a transaction with the next statement, it is opened. In one
    message the values of the rows are text; else they are the driver's Python values.

    If an exception interrupts the wait for the server, as from a signal handler, the statement is
    cancelled, so that no waiter is left in the server's queue.

    Args:
        connection: Django's connection, connected.
        statements: each a whole statement with ``%(name)s`` for a parameter. Only those with
            parameters may return rows.
        parameters: the values, for all statements.
        commits: whether COMMIT travels with them if possible. If it was sent, Django's own commit
            has nothing left to commit, and runs the ``on_commit`` hooks. Else the transaction is
            still open, and Django's commit ends it. The rows do not show whether COMMIT was sent.
            So a failure of a statement must be an error of the server, which keeps COMMIT from
            being run, and not a value in the rows.

    Raises:
        django.db.Error: a statement or the COMMIT failed.
    """
    driver = fast_driver(connection, commits=commits)
    opening = None if driver is None else _opening(driver)
    try:
        if driver is None or opening is None:
            refuse_pipeline(connection)
            return _one_by_one(connection, statements, parameters)
        closing = (COMMIT,) if commits else ()
        return _in_one_message(connection, driver, opening + statements + closing, parameters)
    except BaseException as error:
        # After a database error no statement is running. Any other exception has interrupted a
        # wait.
        if not isinstance(error, Error | psycopg.Error):
            cancel_if_running(connection)
        raise


def fetch_directly(
    connection: BaseDatabaseWrapper,
    statement: str,
    parameters: Mapping[str, Any],
    rows: list[Any],
) -> None:
    """Run one statement as :func:`~django_dblock.core.connection.fetch` does with a list for rows.

    In autocommit the cursors of Django and of the driver are skipped if they may be. The rows are
    the same. So is the text that is sent, until the session has prepared the statement.
    """
    connection.close_if_health_check_failed()
    driver = fast_driver(connection)
    if driver is None or driver.closed or not _sends_text(connection, driver):
        fetch(connection, statement, parameters, rows)
        return
    connection.validate_thread_sharing()
    received: list[PGresult] = []
    try:
        with connection.wrap_database_errors:
            adapt = Transformer(driver)
            template, names = template_of(statement)
            values = [parameters[name] for name in names]
            if not _run_prepared(connection, adapt, template, values, received):
                message = template.encode()
                if values:
                    message %= tuple(map(adapt.as_literal, values))
                _send_and_wait(driver, message, _receiving(driver, received))
            rows += _loaded(adapt, received)
    except Error:
        drop_if_dead(connection)
        raise
    except BaseException:
        with suppress(Exception):  # the exception that has interrupted the statement is raised
            interrupted = cancel_if_running(connection)
            if interrupted is not None:
                received = [interrupted]
            rows[:] = _loaded(Transformer(driver), received)
        raise


def _sends_text(connection: BaseDatabaseWrapper, driver: "psycopg.Connection[Any]") -> bool:
    """Return whether the driver's cursor would send a statement as one text, in autocommit."""
    factory: Any = driver.cursor_factory
    loader: Any = driver.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT)
    return (
        driver.autocommit
        and factory is Cursor  # the other kind binds on the server
        and loader.timezone == connection.timezone  # else Django registers another for the cursor
        and not connection.queries_logged  # Django's log shows the values
        and apps.ready
    )


def _opening(driver: "psycopg.Connection[Any]") -> tuple[str, ...] | None:
    """Return the statements that begin the message; None if only the driver can begin it."""
    status = driver.pgconn.transaction_status
    if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
        return ()
    # BEGIN would have to name an isolation level, access mode or deferrability of the driver's.
    own = (driver.isolation_level, driver.read_only, driver.deferrable)
    if status == TransactionStatus.IDLE and not driver.autocommit and own == (None, None, None):
        return (BEGIN,)
    return None


def _in_one_message(
    connection: BaseDatabaseWrapper,
    driver: "psycopg.Connection[Any]",
    statements: tuple[str, ...],
    parameters: Mapping[str, Parameter],
) -> list[Rows]:
    connection.validate_thread_sharing()
    template, names = _joined(statements)
    values = [parameters[name] for name in names]
    if connection.queries_logged or not apps.ready:
        message: Any = _Message(driver)
        connection.make_debug_cursor(message).execute(template, values)
        results: list[Rows] = message.results
        return results
    # The rest of what Django's cursor does; fast_driver() has made sure that it does no more.
    connection.validate_no_broken_transaction()
    with connection.wrap_database_errors:
        return _results(driver, template, values)


@lru_cache(maxsize=512)
def _joined(statements: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    parts = list(map(template_of, statements))
    return ";".join(text for text, _ in parts), tuple(name for _, names in parts for name in names)


def _one_by_one(
    connection: BaseDatabaseWrapper,
    statements: tuple[str, ...],
    parameters: Mapping[str, Parameter],
) -> list[Rows]:
    results: list[Rows] = []
    with connection.cursor() as cursor:
        for statement in statements:
            arguments = positional(statement, parameters)
            cursor.execute(*arguments)
            if len(arguments) > 1:  # only statements with parameters return rows
                results.append(cursor.fetchall())
    return results


class _Message:
    """A cursor for Django's log of queries, whose ``execute`` sends one message."""

    def __init__(self, driver: "psycopg.Connection[Any]") -> None:
        self._driver = driver
        # Django's debug cursor logs this text. It has no values, because logs must not have them.
        self._query = SimpleNamespace(query=None)
        self.connection = driver
        self.results: list[Rows] = []

    def execute(self, template: str, values: Sequence[Parameter]) -> None:
        self._query.query = template.encode()
        self.results = _results(self._driver, template, values)


def _results(
    driver: "psycopg.Connection[Any]", template: str, values: Sequence[Parameter]
) -> list[Rows]:
    """Send the statements with the values; return the rows of each statement that returns rows."""
    text = template % tuple(
        [
            f"'{value}'"
            if type(value) is str and "'" not in value and "\\" not in value
            else _literal(value, driver)
            for value in values
        ]
    )
    results = []
    for result in _send_and_wait(driver, text.encode()):
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        if result.status == ExecStatus.TUPLES_OK:
            results.append(_rows(result))
    return results


def _send_and_wait(
    driver: "psycopg.Connection[Any]",
    message: bytes,
    receiving: abc.PQGen[list[PGresult]] | None = None,
) -> list[PGresult]:
    """Send a message, and wait for its results. All of its work is the driver's."""
    with driver.lock:
        driver.pgconn.send_query(message)
        return driver.wait(receiving or generators.execute(driver.pgconn))


def _run_prepared(
    connection: BaseDatabaseWrapper,
    adapt: abc.Transformer,
    template: str,
    values: Sequence[Any],
    received: list[PGresult],
) -> bool:
    """Run a prepared statement; return False if nothing was run, and the text must be sent."""
    driver = connection.connection
    known = _sessions.get(driver)
    if known is None:
        known = _sessions[driver] = _Session()
    if not (known.keeps and conf.prepare):
        return False
    if monotonic() >= known.until:
        known.begin()
    times = known.times.get(template, 0)
    if times < _PREPARE_AFTER:
        known.times[template] = times + 1
        return False
    dumped = adapt.dump_sequence(values, [PyFormat.TEXT] * len(values))
    try:
        name = _prepared(driver, known, (template, adapt.types or ()))
    except BaseException:
        cancel_if_running(connection)  # what it returns is not the statement's
        raise
    if name is None:
        return False
    with driver.lock:
        driver.pgconn.send_query_prepared(name, dumped)
        driver.wait(_receiving(driver, received))
    if received[-1].error_field(DiagnosticField.SQLSTATE) in _NOT_KEPT:
        received.clear()
        known.keeps = False
        return False
    return True


def _prepared(
    driver: "psycopg.Connection[Any]", known: "_Session", key: tuple[str, tuple[int, ...]]
) -> bytes | None:
    """Return the name of the prepared statement; None if that is not possible, or 50 are."""
    if known.outdated:
        _is_done(_send_and_wait(driver, b"DISCARD PLANS"))
        known.outdated = False
    name = known.names.get(key)
    if name is None and len(known.names) < _MOST_PREPARED:
        name = _prepare(driver, known, *key)
        if name is None:
            known.keeps = False
        else:
            known.names[key] = name
    return name


def _prepare(
    driver: "psycopg.Connection[Any]", known: "_Session", template: str, types: tuple[int, ...]
) -> bytes | None:
    """Prepare a statement; return its name, or None if that is not possible in this session."""
    if not known.names:
        # A pooler gives its clients process ids of its own. Behind it the next statement may be run
        # by another session, which has not prepared it.
        found = _send_and_wait(driver, b"SELECT pg_backend_pid()")
        given = str(driver.pgconn.backend_pid).encode()
        if not _is_done(found) or found[0].get_value(0, 0) != given:
            return None
    numbers = itertools.count(1)
    text = _PERCENT.sub(lambda at: "%" if at[0] == "%%" else f"${next(numbers)}", template)
    # Named by its content: where a pooler does pass its server's process id on, a name of another
    # client's statement never means another statement.
    name = f"dblock_{blake2b(f'{text} {types}'.encode(), digest_size=16).hexdigest()}".encode()
    with driver.lock:
        driver.pgconn.send_prepare(name, text.encode(), types)
        results = driver.wait(generators.execute(driver.pgconn))
    return name if _is_done(results) else None


def _is_done(results: Sequence[PGresult]) -> bool:
    """Return whether a message has worked, or is refused because of what it says.

    Of the latter kind: the type of a parameter is unknown, or another thread has just prepared the
    statement. Then the text can be sent.

    Raises:
        psycopg.Error: anything else, such as a cancellation, a time limit or the server's end.
    """
    result = results[-1]
    if result.status != ExecStatus.FATAL_ERROR:
        return True
    if (result.error_field(DiagnosticField.SQLSTATE) or b"")[:2] in _REFUSALS:
        return False
    raise psycopg.errors.error_from_result(result, encoding="utf-8")


_REFUSALS = (b"42", b"0A")
"""Classes of SQLSTATE: syntax error or access rule violation, and feature not supported."""


class _Session:
    """What a session of the server has prepared for this package.

    A statement that is sent often is prepared, so that the server does not parse and plan it for
    every call. Only statements that commit by themselves are: if the session has forgotten one, the
    server says so before it runs anything, no transaction is aborted, and the text is sent.

    A plan that was made while the table was nearly empty reads the whole table, also when it has
    grown, until autovacuum has analyzed it. So plans live for one period. A statement that is sent
    a few times in it is not worth a plan.

    PostgreSQL manual: PREPARE, DISCARD; 54.2.3 "Extended Query".

    Attributes:
        keeps: whether the session keeps what was prepared, as far as is known.
        until: when the period ends, on the package's clock.
        times: how often each statement was sent as text in the period.
        names: the names of the prepared statements, by text and the types of the parameters.
        outdated: whether they have plans of an earlier period.
    """

    __slots__ = ("keeps", "names", "outdated", "times", "until")

    def __init__(self) -> None:
        self.keeps = True
        self.names: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a period."""
        self.until = monotonic() + _PERIOD
        self.times: dict[str, int] = {}
        self.outdated = bool(self.names)


_sessions: "WeakKeyDictionary[psycopg.Connection[Any], _Session]" = WeakKeyDictionary()

_PERIOD = 5.0
"""Seconds for which a plan is used."""

_PREPARE_AFTER = 5
"""Times that a statement is sent as text in each period."""

_MOST_PREPARED = 50
"""Statements that a session keeps; each takes memory of the server, and each schema has its own."""

# The statement is unknown, as after DISCARD ALL or DEALLOCATE ALL; or its columns have other types
# since a migration (feature_not_supported). The server says so before it runs anything.
_NOT_KEPT = (b"26000", b"0A000")

_PERCENT = re.compile("%[%s]")


def _receiving(
    driver: "psycopg.Connection[Any]", received: list[PGresult]
) -> abc.PQGen[list[PGresult]]:
    """Receive the results, and keep them also if an exception interrupts the wait.

    After Ctrl-C the driver cancels the statement, and reads what it returned all the same.
    """
    received += yield from generators.execute(driver.pgconn)
    return received


def _loaded(adapt: abc.Transformer, received: Sequence[PGresult]) -> Rows:
    """Return the rows of one statement as the driver's cursor would return them."""
    rows: Rows = []
    for result in received:  # one, or none if the statement was cancelled
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        if result.status == ExecStatus.TUPLES_OK:
            adapt.set_pgresult(result)
            rows += adapt.load_rows(0, result.ntuples, tuple)
    return rows


def _literal(value: Parameter, driver: "psycopg.Connection[Any]") -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return Escaping(driver.pgconn).escape_literal(value.encode()).decode()
    if isinstance(value, bytes):  # valid whatever standard_conforming_strings is
        return f"E'\\\\x{value.hex()}'"
    if isinstance(value, int):
        return str(value)
    return f"'{{{','.join(map(str, value))}}}'"


def _rows(result: PGresult) -> Rows:
    # in one frame: a call for each value costs more than the value
    value, columns = result.get_value, range(result.nfields)
    return [
        tuple([None if (found := value(row, n)) is None else found.decode() for n in columns])
        for row in range(result.ntuples)
    ]


# Where two statements are right, and the cheaper one depends on what the server will find.


_MOST_HINTS = 10_000


class Hints(dict[Key, bool]):
    """What this process has seen, by name, to send the cheaper of two statements.

    A wrong or a missing hint costs one statement more, or a longer one, and nothing else. So
    threads may overwrite each other's entries. After 10,000 names all are forgotten, as many are
    used only once.
    """

    def remember(self, key: Key, *, seen: bool) -> None:
        """Keep what was seen until something else is seen."""
        if len(self) >= _MOST_HINTS:
            self.clear()
        self[key] = seen
