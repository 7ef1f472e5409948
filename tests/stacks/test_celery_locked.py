"""@locked_task and @once_task with prefork workers and a real Redis between."""

import pytest

from tests.helpers import servers


@pytest.fixture(scope="module")
def found(run_program):
    servers.need("redis-server", "redis-server")
    return run_program("celery_locked", needs=("celery", "redis"))


def test_worker_killed_before_or_after_its_commit_has_one_effect(found):
    assert found["died"] == [True, True]
    assert found["paid"] == 2, "one for each of the two tasks"
    assert len(set(found["results"])) == 2


def test_locked_tasks_never_run_at_the_same_time(found):
    assert found["alone"] == [True] * 12


def test_soft_time_limit_releases_the_lease(found):
    assert found["limited"] == "SoftTimeLimitExceeded"


def test_after_a_revoked_task_the_next_one_runs_when_the_ttl_is_over(found):
    assert found["next"] == "done"
