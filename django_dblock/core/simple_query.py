"""Several statements in one message: one round trip to the server.

psycopg sends BEGIN in a message of its own, binds parameters one by one, and its extended protocol
takes one statement a message. All three cost more than a lock does. PostgreSQL's *simple query*
(manual, 54.2.2.1 "Multiple Statements in a Simple Query") takes several statements as one text;
each still sees its own snapshot, and after an error the rest is not run.

What is sent is text with quoted literals, past the driver's cursor. Django's cursor wrappers see
the statements with placeholders, and the parameters beside them, as for any query; the literals are
put in below. :func:`django_dblock.core.connection.fast_driver` says whether the driver's cursor may
be passed by. Where it may not, the same statements go one by one through Django's cursor, with
positional parameters.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, TypeAlias

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import generators
from psycopg.pq import Escaping, ExecStatus, TransactionStatus

from django_dblock.core.connection import (
    cancel_if_running,
    fast_driver,
    positional,
    refuse_pipeline,
    template_of,
)
from django_dblock.sql.advisory import BEGIN, COMMIT

Parameter: TypeAlias = str | int | list[int] | None
Rows: TypeAlias = list[tuple[Any, ...]]


def send(
    connection: BaseDatabaseWrapper, *statements: str, parameters: Mapping[str, Parameter]
) -> Rows:
    """Run the statements as :func:`exchange` does; return the rows of the last that has any.

    Raises:
        django.db.Error: as a cursor raises it.
    """
    results = exchange(connection, *statements, parameters=parameters)
    return results[-1] if results else []


def exchange(
    connection: BaseDatabaseWrapper, *statements: str, parameters: Mapping[str, Parameter]
) -> list[Rows]:
    """Run the statements, in one message if possible; return the rows of each with parameters.

    Opens the transaction that Django and the driver owe, if they do. Values are text in the one
    case, and what the driver makes of them in the other.

    An exception that interrupts the wait for the server, from a signal handler, cancels the
    statement: no waiter is left in the server's queue.

    Args:
        connection: Django's connection, connected.
        statements: each a whole statement with ``%(name)s`` for a parameter. Only those with
            parameters may return rows.
        parameters: the values, for all statements.

    Raises:
        django.db.Error: as a cursor raises it.
    """
    return _exchange(connection, statements, parameters, commits=False)


def exchange_and_commit(
    connection: BaseDatabaseWrapper, *statements: str, parameters: Mapping[str, Parameter]
) -> list[Rows]:
    """Run the statements as :func:`exchange` does, and let COMMIT travel with them if possible.

    Where it did, Django's own commit finds nothing left to do, and runs the ``on_commit`` hooks.
    Where it did not, the transaction is still open, and Django's commit ends it. The rows say
    nothing of which it was, so an error of any statement must be one that keeps COMMIT from being
    run: it must be raised by the server, not read from the rows.
    """
    return _exchange(connection, statements, parameters, commits=True)


def _exchange(
    connection: BaseDatabaseWrapper,
    statements: tuple[str, ...],
    parameters: Mapping[str, Parameter],
    *,
    commits: bool,
) -> list[Rows]:
    driver = fast_driver(connection)
    opening = None if driver is None else _opening(driver)
    try:
        if driver is None or opening is None:
            refuse_pipeline(connection)
            return _one_by_one(connection, statements, parameters)
        closing = (COMMIT,) if commits else ()
        return _in_one_message(connection, driver, opening + statements + closing, parameters)
    except BaseException as error:
        # After an error of the database nothing is running. Anything else has interrupted a wait.
        if not isinstance(error, Error | psycopg.Error):
            cancel_if_running(connection)
        raise


def _opening(driver: "psycopg.Connection[Any]") -> tuple[str, ...] | None:
    """Return what the message has to begin with; None where only the driver can begin it."""
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
    message: Any = _Message(driver)
    logged = connection.queries_logged
    cursor = connection.make_debug_cursor(message) if logged else connection.make_cursor(message)
    template, names = _joined(statements)
    cursor.execute(template, [parameters[name] for name in names])
    results: list[Rows] = message.results
    return results


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
            if len(arguments) > 1:  # only those with parameters have rows
                results.append(cursor.fetchall())
    return results


class _Message:
    """A cursor as far as Django's wrappers use one: ``execute`` sends one message."""

    def __init__(self, driver: "psycopg.Connection[Any]") -> None:
        self._driver = driver
        # Django's debug cursor logs this text. It has no values: logs are not for them.
        self._query = SimpleNamespace(query=None)
        self.connection = driver
        self.results: list[Rows] = []

    def execute(self, template: str, parameters: Sequence[Parameter]) -> None:
        driver = self._driver
        self._query.query = template.encode()
        text = template % tuple(
            [
                f"'{value}'"
                if type(value) is str and "'" not in value and "\\" not in value
                else self._literal(value)
                for value in parameters
            ]
        )
        with driver.lock:
            driver.pgconn.send_query(text.encode())
            results = driver.wait(generators.execute(driver.pgconn))
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
            if result.status == ExecStatus.TUPLES_OK:
                self.results.append(_rows(result))

    def _literal(self, value: Parameter) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, str):
            return Escaping(self._driver.pgconn).escape_literal(value.encode()).decode()
        if isinstance(value, int):
            return str(value)
        return f"'{{{','.join(map(str, value))}}}'"


def _rows(result: Any) -> Rows:
    # in one frame: a call for each value costs more than the value
    value, columns = result.get_value, range(result.nfields)
    return [
        tuple([None if (found := value(row, n)) is None else found.decode() for n in columns])
        for row in range(result.ntuples)
    ]
