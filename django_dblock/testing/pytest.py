"""The helpers as fixtures: ``pytest_plugins = ["django_dblock.testing.pytest"]`` in conftest.py.

No entry point: a run of pytest that has nothing to do with locks does not import them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from django_dblock import testing
from django_dblock.testing import leaks
from django_dblock.testing.leaks import refuse_transaction


@pytest.fixture
def hold_lock() -> Iterator[Callable[..., testing.hold_lock]]:
    """``hold_lock("inventory", "sku-1")``: somebody else has it, until the test ends.

    Takes what :class:`django_dblock.testing.hold_lock` takes, and returns it, entered.
    """
    with ExitStack() as stack:

        def hold(*key: Any, **options: Any) -> testing.hold_lock:
            return stack.enter_context(testing.hold_lock(*key, **options))

        yield hold


@pytest.fixture
def race() -> Callable[..., list[Any]]:
    """``race(8, buy)``: see :func:`django_dblock.testing.race`."""
    return testing.race


@pytest.fixture
def assert_no_locks() -> Iterator[Callable[..., None]]:
    """Fail the test if it leaves anything locked; or call it, in the middle.

    See :func:`django_dblock.testing.assert_no_locks`.
    """
    refuse_transaction(None, "assert_no_locks", leaks.WHY)
    yield testing.assert_no_locks
    testing.assert_no_locks()
