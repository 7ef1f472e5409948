"""Celery's prefork workers with a real Redis between."""

import pytest

from tests.helpers import servers


@pytest.fixture(scope="module")
def found(run_program):
    servers.need("redis-server", "redis-server")
    return run_program("celery_prefork", needs=("celery", "redis"))


def test_advisory_locks_keep_children_apart(found):
    assert found["left"] == 70
    assert found["children"] > 1, "more than one child was at work"


def test_task_that_is_delivered_four_times_has_one_effect(found):
    assert found["paid"] == 1
    assert len(set(found["payments"])) == 1


def test_lease_in_a_forked_child_outlives_its_ttl_alone(found):
    assert found["held"] == ["busy", "held"]


def test_soft_time_limit_ends_the_wait_and_leaves_no_waiter(found):
    assert found["limited"] == "SoftTimeLimitExceeded"
