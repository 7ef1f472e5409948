"""``dblock list`` of 10,000 advisory locks and 10,000 leases: what it adds to asking and printing.

The raw rows send the same statements, and print what they return in the simplest way there is.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import psycopg
from django.core.management import call_command
from django.db import connection

from django_dblock.keys import encode, key_id
from tests.benchmarks.measure import Row, Scenario

MANY = 10_000
LOCK = "SELECT pg_advisory_xact_lock(id) FROM unnest(%s::bigint[]) AS id"
LABEL = "SET LOCAL application_name = 'shop lock[inventory:0 inventory:1 inventory:2]'"
LEASES = """
INSERT INTO django_dblock_fencedlock
    (name, slot, token, owner, acquired_at, renewed_at, expires_at, lock_delay, grants, metadata)
SELECT 'account:' || n, 0, n, 'web-2:4711:MainThread', now(), now(), now() + interval '1 h',
    interval '0', 1, '{}'
FROM generate_series(1, %s::int) AS n
"""


def scenario() -> Scenario:
    return _scenario("list", "as tables", _as_text, ())


def scenario_as_json() -> Scenario:
    return _scenario("list-json", "as JSON", _as_json, ("--json",))


Printed = Callable[[list[str], list[tuple[Any, ...]]], str]


def _scenario(name: str, how: str, printed: Printed, arguments: tuple[str, ...]) -> Scenario:
    sent: list[tuple[str, Any]] = []

    def record(execute: Any, statement: str, parameters: Any, *more: Any) -> Any:
        sent.append((statement, parameters))
        return execute(statement, parameters, *more)

    def raw(number: int) -> None:
        if not sent:  # before the first time that counts
            with connection.execute_wrapper(record):
                ours(number)
        out = StringIO()
        for statement, parameters in sent:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                names = [f"{number}" for number, _ in enumerate(cursor.description)]
                print(printed(names, cursor.fetchall()), file=out)
        assert out.getvalue().count("\n") >= 2 * MANY

    def ours(number: int) -> None:
        out = StringIO()
        call_command("dblock", "list", *arguments, stdout=out)
        assert out.getvalue().count("\n") >= 2 * MANY

    return Scenario(
        name,
        f"dblock list of {2 * MANY:,} locks {how}",
        [Row("raw", "the same statements and print()", raw), Row("list", "dblock list", ours)],
        around=_many,
        calls=1,
    )


def _as_text(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    """In columns, each as wide as its widest cell."""
    cells = [names, *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join(f"{{:{width}}}" for width in widths)
    return "\n".join(form.format(*row) for row in cells)


def _as_json(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    return "\n".join(json.dumps(dict(zip(names, row, strict=True)), default=str) for row in rows)


@contextmanager
def _many() -> Iterator[None]:
    """Somebody else holds them, while a call is timed."""
    connection.ensure_connection()
    with psycopg.connect(connection.connection.info.dsn) as other:
        other.execute("TRUNCATE django_dblock_fencedlock")
        other.execute(LEASES, [MANY])
        other.commit()
        other.execute("ANALYZE django_dblock_fencedlock")
        other.commit()
        other.execute(LABEL)
        other.execute(LOCK, [[key_id(encode(("inventory", n))) for n in range(MANY)]])
        yield
        other.execute("TRUNCATE django_dblock_fencedlock")
