"""Whether the test's transactions let the helpers work, and looking until something is so.

Which databases a test may use is watched by Django and pytest-django on every connection, those
that the helpers open included.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from django_dblock.databases import connection_for, in_transaction

T = TypeVar("T")

_PAUSE = 0.005
"""Seconds between two looks at the server."""


def refuse_transaction(using: str | None, helper: str, why: str) -> None:
    """Raise RuntimeError where a transaction is open, as TestCase opens one around each test."""
    connection = connection_for(using)
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
