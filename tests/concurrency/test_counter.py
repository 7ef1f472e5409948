"""8 processes of 100 read-modify-writes on one counter: nothing is lost with the lock.

The same without it, and with the well-known recipes, does lose: so the test can fail.
"""

import pytest

from django_dblock import advisory_lock, advisory_locks, testing
from tests.app.models import Counter
from tests.helpers import recipes
from tests.helpers.counting import outer_transaction, own_transaction
from tests.helpers.processes import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]

PROCESSES, ROUNDS = 8, 100
TWIN_ROUNDS = 25
"""Without the right lock about half of the additions are lost, or more: a quarter is enough."""


def in_threads(count, work, *arguments):
    """The same race in one process: a connection for each thread."""
    return testing.race(count, lambda number: work(number, *arguments))


def both(*key):
    return advisory_locks([key, ("counter", "other")])


def count(work, lock, rounds=ROUNDS, race=race):
    Counter.objects.create(name="hits")
    race(PROCESSES, work, lock, rounds)
    return Counter.objects.get(name="hits").value


@pytest.mark.parametrize("lock", [advisory_lock, both])
@pytest.mark.parametrize("work", [own_transaction, outer_transaction])
def test_processes_lose_no_update(work, lock):
    assert count(work, lock) == PROCESSES * ROUNDS


@pytest.mark.parametrize("work", [own_transaction, outer_transaction])
def test_threads_lose_no_update(work, assert_no_locks):
    assert count(work, advisory_lock, race=in_threads) == PROCESSES * ROUNDS
    assert_no_locks()


def test_negative_twin_threads_lose_updates_without_the_lock():
    value = count(own_transaction, recipes.no_lock, TWIN_ROUNDS, race=in_threads)
    assert value < PROCESSES * TWIN_ROUNDS


@pytest.mark.parametrize("work", [own_transaction, outer_transaction])
def test_negative_twin_without_the_lock_updates_are_lost(work):
    assert count(work, recipes.no_lock, TWIN_ROUNDS) < PROCESSES * TWIN_ROUNDS


@pytest.mark.parametrize("recipe", [recipes.session_lock, recipes.ignored_answer])
def test_negative_twin_with_the_wrong_recipes_updates_are_lost(recipe):
    assert count(outer_transaction, recipe, TWIN_ROUNDS) < PROCESSES * TWIN_ROUNDS
