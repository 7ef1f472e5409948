"""The helpers as fixtures: ``pytest_plugins = ["django_dblock.testing.pytest"]`` in conftest.py.

There is no entry point, so that a pytest run without locks does not import them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.test import TransactionTestCase

from django_dblock import testing
from django_dblock.testing import leaks
from django_dblock.testing.leaks import refuse_transaction


@pytest.fixture
def hold_lock() -> Iterator[Callable[..., testing.hold_lock]]:
    """Hold locks until the test ends: ``hold_lock("inventory", "sku-1")``.

    Takes the arguments of :class:`django_dblock.testing.hold_lock` and returns it, entered.
    """
    with ExitStack() as stack:

        def hold(*key: Any, **options: Any) -> testing.hold_lock:
            return stack.enter_context(testing.hold_lock(*key, **options))

        yield hold


@pytest.fixture
def hold_lease() -> Iterator[Callable[..., testing.hold_lease]]:
    """Hold leases until the test ends: ``hold_lease(fenced_semaphore("api", permits=1, ttl=30))``.

    Takes the argument of :class:`django_dblock.testing.hold_lease` and returns it, entered.
    """
    with ExitStack() as stack:
        yield lambda block: stack.enter_context(testing.hold_lease(block))


@pytest.fixture
def race() -> Callable[..., list[Any]]:
    """Return :func:`django_dblock.testing.race`, to call ``race(8, buy)``."""
    return testing.race


@pytest.fixture
def assert_no_locks(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Fail the test if it leaves a lock; call the fixture to check earlier, too.

    The check is :func:`django_dblock.testing.assert_no_locks`.
    """
    refuse_transaction(None, "assert_no_locks", leaks.WHY)
    if isinstance(request.instance, TransactionTestCase):
        # It empties the tables, also that of the leases, before a fixture ends.
        request.instance.addCleanup(testing.assert_no_locks)
    yield testing.assert_no_locks
    testing.assert_no_locks()
