"""Which database the helpers may touch, and whether its transactions let them work."""

import time
from collections.abc import Callable
from typing import TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.databases import connection_for, in_transaction

T = TypeVar("T")

_PAUSE = 0.005
"""Seconds between two looks at the server."""


def allowed(using: str | None) -> BaseDatabaseWrapper:
    """Return the test's own connection, if the test may use that database at all.

    A second connection is not watched by Django or pytest-django, which keep tests without a
    database away from the real one; so their watch over the first is asked.

    Raises:
        django.test.testcases.DatabaseOperationForbidden, RuntimeError: it may not.
    """
    connection = connection_for(using)
    with connection.cursor():
        return connection


def refuse_transaction(using: str | None, helper: str, why: str) -> None:
    """Raise RuntimeError where a transaction is open, as TestCase opens one around each test."""
    connection = allowed(using)
    if in_transaction(connection):
        raise RuntimeError(
            f"{helper}() was called inside a transaction on database {connection.alias!r}: {why}. "
            f"Use django.test.TransactionTestCase instead of TestCase, or "
            f"@pytest.mark.django_db(transaction=True); and call it outside of atomic()."
        )


def until(look: Callable[[], T], satisfied: Callable[[T], bool], within: float) -> T:
    """Look again and again until it satisfies, or the seconds are over; return the last look."""
    deadline = time.monotonic() + within
    while not satisfied(seen := look()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return seen
