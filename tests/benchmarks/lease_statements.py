"""A lease's statements alone, without our Python and without waiting for the disk.

docs/explanation/what-a-lease-costs.md chooses between designs by these figures.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connections, transaction

from django_dblock.core.connection import positional
from django_dblock.sql import fencing as sql
from tests.benchmarks import lease
from tests.benchmarks.measure import Row, Scenario

PREPARED = "prepared"
NAMES = [f"statements:{number}" for number in range(10)]


def scenario() -> Scenario:
    with connections["default"].cursor() as cursor:
        for function in FUNCTIONS:
            cursor.execute(function)
    whole, short = (sql.ACQUIRE, sql.RELEASE), (sql.TAKE, sql.RELEASE_UNAWAITED)
    unknown = (sql.TAKE_OR_INSERT, sql.RELEASE_UNAWAITED)
    rows = [
        Row("raw", "the pair of statements that you would write by hand", lease.by_hand("default")),
        Row("whole", "ACQUIRE and RELEASE", _pair(*whole)),
        Row("new", "TAKE_OR_INSERT and RELEASE_UNAWAITED, new names", _pair(*unknown, new=True)),
        Row("unknown", "TAKE_OR_INSERT and RELEASE_UNAWAITED", _pair(*unknown)),
        Row("short", "TAKE and RELEASE_UNAWAITED", _pair(*short)),
        Row("functions", "TAKE and RELEASE as functions in the server", _functions),
    ]
    for name, label, call in (
        ("raw", "the pair by hand", lease.by_hand(PREPARED)),
        ("whole", "ACQUIRE and RELEASE", _pair(*whole, alias=PREPARED)),
        ("unknown", "TAKE_OR_INSERT and RELEASE_UNAWAITED", _pair(*unknown, alias=PREPARED)),
        ("short", "TAKE and RELEASE_UNAWAITED", _pair(*short, alias=PREPARED)),
    ):
        rows.append(Row(f"{name}-prepared", f"{label}, prepared by psycopg", call, alias=PREPARED))
    return Scenario(
        "lease-statements", "A lease's statements alone", rows, around=_transactions, calls=10
    )


@contextmanager
def _transactions() -> Iterator[None]:
    """Commit after the call, outside of its time. A ROLLBACK would make psycopg prepare anew."""
    with transaction.atomic(), transaction.atomic(using=PREPARED):
        for alias in ("default", PREPARED):
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")  # BEGIN goes out with the first statement: not with ours
        yield


def _pair(
    acquire: str, release: str, alias: str = "default", *, new: bool = False
) -> Callable[[int], None]:
    asked = {
        "slot": 0,
        "owner": "host:1:main",
        "lock_delay": 0,
        "metadata": "{}",
        "in_turn": False,
        "ticket": None,
        "hold_at_least": 0,
        "was_lost": False,
    }
    with connections["default"].cursor() as cursor:
        for name in NAMES:  # so that there is a row for TAKE
            cursor.execute(*positional(sql.ACQUIRE, {**asked, "name": name, "ttl": 0}))

    def pair(number: int) -> None:
        name = f"statements, new:{number}" if new else NAMES[number % len(NAMES)]
        parameters = {**asked, "name": name, "ttl": lease.TTL}
        with connections[alias].cursor() as cursor:
            cursor.execute(*positional(acquire, parameters))
            [(_, token, *_)] = cursor.fetchall()
        with connections[alias].cursor() as cursor:
            cursor.execute(*positional(release, {**parameters, "token": token}))
            assert cursor.rowcount == 1

    return pair


def _body(statement: str) -> str:
    return re.sub(r"%\((\w+)\)s", r"_\1", statement).replace("%%", "%")


FUNCTIONS = (
    f"""
CREATE OR REPLACE FUNCTION benchmark_take(
    _name text, _slot int, _owner text, _ttl float8, _lock_delay float8, _metadata text
) RETURNS TABLE (
    outcome_ text, token_ bigint, expires_at_ timestamptz, remaining_ float8, owner_ text,
    schema_ text, synchronous_commit_ text
) LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY {_body(sql.TAKE)}; END $$
""",
    f"""
CREATE OR REPLACE FUNCTION benchmark_release(
    _name text, _slot int, _token bigint, _hold_at_least float8, _was_lost boolean
) RETURNS TABLE (notified_ text, synchronous_commit_ text)
LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY {_body(sql.RELEASE)}; END $$
""",
)


def _functions(number: int) -> None:
    name = NAMES[number % len(NAMES)]
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT * FROM benchmark_take(%s, 0, 'host:1:main', %s, 0, '{}')", [name, lease.TTL]
        )
        [(_, token, *_)] = cursor.fetchall()
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT * FROM benchmark_release(%s, 0, %s, 0, false)", [name, token])
        assert cursor.rowcount == 1
