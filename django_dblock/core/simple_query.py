"""Statements that travel to the server together: one message, one round trip.

psycopg sends BEGIN in a message of its own, binds parameters one by one, and its extended protocol
takes one statement a message. All three cost more than a lock does. PostgreSQL's *simple query*
(manual, 54.2.2.1 "Multiple Statements in a Simple Query") takes several statements as one text;
each still sees its own snapshot, and after an error the rest is not run. So what is sent here is
text, of integers and quoted literals, past the driver's cursor and nothing else: Django's cursor
wrappers, ``execute_wrapper`` and ``connection.queries`` see it as they see any query, and Ctrl-C
works as it does there.

Where anything is unusual (the driver's pipeline mode; an isolation level, access mode or
deferrability that BEGIN would have to name; a connection or cursor that somebody instruments), the
same statements go one by one, through the cursor, with parameters.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, TypeAlias

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import generators
from psycopg.pq import Escaping, ExecStatus, TransactionStatus

from django_dblock.sql.advisory import BEGIN

Parameter: TypeAlias = str | int | list[int] | None
Rows: TypeAlias = list[tuple[str | None, ...]]


def send(
    connection: BaseDatabaseWrapper, *statements: str, parameters: Mapping[str, Parameter]
) -> Rows:
    """Run the statements, in one message where that can be; return the rows of the last with rows.

    As :func:`exchange`.
    """
    answers = exchange(connection, *statements, parameters=parameters)
    return answers[-1] if answers else []


def exchange(
    connection: BaseDatabaseWrapper, *statements: str, parameters: Mapping[str, Parameter]
) -> list[Rows]:
    """Run the statements, in one message where that can be; return the rows of each that has any.

    Opens the transaction that Django and the driver owe, if they do. Values are text.

    Args:
        connection: Django's connection, connected.
        statements: each a whole statement with ``%(name)s`` for a parameter.
        parameters: the values, for all statements.

    Raises:
        django.db.Error: as a cursor would.
    """
    opening = _opening(connection)
    if opening is None:
        return _one_by_one(connection, statements, parameters)
    connection.validate_thread_sharing()
    message: Any = _Message(connection.connection)
    literals = {name: _literal(value, message) for name, value in parameters.items()}
    logged = connection.queries_logged
    cursor = connection.make_debug_cursor(message) if logged else connection.make_cursor(message)
    cursor.execute(";".join((*opening, *statements)) % literals)
    answers: list[Rows] = message.answers
    return answers


def _opening(connection: BaseDatabaseWrapper) -> tuple[str, ...] | None:
    """Return what a message has to begin with; None where it must go the ordinary way."""
    driver = connection.connection
    if (
        type(driver) is not psycopg.Connection  # somebody's proxy, for tracing perhaps
        or driver.cursor_factory.execute is not psycopg.Cursor.execute
        # a patched cursor(), as debug toolbars have it
        or getattr(connection.cursor, "__func__", None) is not type(connection).cursor
        or driver._pipeline is not None  # noqa: SLF001 - the driver has no other way to ask
    ):
        return None
    status = driver.pgconn.transaction_status
    if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
        return ()
    own = (driver.isolation_level, driver.read_only, driver.deferrable)
    if status == TransactionStatus.IDLE and not driver.autocommit and own == (None, None, None):
        return (BEGIN,)
    return None


def _one_by_one(
    connection: BaseDatabaseWrapper,
    statements: tuple[str, ...],
    parameters: Mapping[str, Parameter],
) -> list[Rows]:
    answers: list[Rows] = []
    with connection.cursor() as cursor:
        for statement in statements:
            if "%(" not in statement:
                cursor.execute(statement)
            else:  # the only ones with rows
                cursor.execute(statement, dict(parameters))
                answers.append(cursor.fetchall())
    return answers


def _literal(value: Parameter, message: "_Message") -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        # libpq's quoting, where quoting has anything to do
        return f"'{value}'" if "'" not in value and "\\" not in value else message.quote(value)
    if isinstance(value, int):
        return str(value)
    return f"'{{{','.join(map(str, value))}}}'"


class _Message:
    """As much of a cursor as Django's wrappers want: ``execute`` sends the text as it is."""

    def __init__(self, driver: "psycopg.Connection[Any]") -> None:
        self._driver = driver
        self._query = SimpleNamespace(query=None)  # where Django looks for what was sent
        self.answers: list[Rows] = []

    def quote(self, value: str) -> str:
        return Escaping(self._driver.pgconn).escape_literal(value.encode()).decode()

    def execute(self, text: str) -> None:
        driver = self._driver
        self._query.query = text.encode()
        with driver.lock:
            driver.pgconn.send_query(self._query.query)
            results = driver.wait(generators.execute(driver.pgconn))
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
            if result.status == ExecStatus.TUPLES_OK:
                self.answers.append(
                    [
                        tuple(
                            _text(result.get_value(row, column)) for column in range(result.nfields)
                        )
                        for row in range(result.ntuples)
                    ]
                )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
