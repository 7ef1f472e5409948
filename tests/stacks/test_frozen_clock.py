"""freezegun and time-machine stop the clocks of Python; waits and leases must not notice."""

import pytest


@pytest.fixture(scope="module", params=["freezegun", "time_machine"])
def found(request, run_program):
    return run_program("frozen", request.param, needs=(request.param,))


def test_clock_was_really_stopped(found):
    assert found["today"] == 2020


def test_waits_come_to_their_end(found):
    assert found["lease_wait"] == "ended"
    assert found["advisory_wait"] == "ended"


def test_lease_outlives_its_ttl(found):
    assert found["guarded"]


def test_work_runs_once(found):
    assert (found["results"], found["ran"]) == ([7, 7], 1)
