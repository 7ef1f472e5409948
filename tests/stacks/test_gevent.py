"""gevent with the pool of django-db-geventpool."""

import pytest


@pytest.fixture(scope="module")
def found(run_program):
    return run_program("greenlets", needs=("gevent", "django_db_geventpool"))


def test_advisory_locks_keep_greenlets_apart(found):
    assert found["left"] == 100 - 4 * 20


def test_lease_outlives_its_ttl_while_the_pool_is_exhausted(found):
    assert found["exclusive"]


def test_work_runs_once_for_all_greenlets(found):
    assert found["results"] == [7] * 4
    assert found["ran"] == 1
