"""Tracing agents wrap the driver: leases outlive their ttl, results are right, values stay out."""

import pytest

NEEDS = {
    "none": (),
    "ddtrace": ("ddtrace",),
    "elasticapm": ("elasticapm",),
    "newrelic": ("newrelic",),
    "sentry_sdk": ("sentry_sdk",),
    "opentelemetry": (
        "opentelemetry.instrumentation.psycopg",
        "opentelemetry.instrumentation.django",
    ),
}


@pytest.fixture(scope="module", params=NEEDS)
def found(request, run_program):
    return {"agent": request.param} | run_program(
        "agent", request.param, needs=NEEDS[request.param], DD_TRACE_ENABLED="true"
    )


def test_work_runs_once_and_replies_are_replayed(found):
    assert found["runs"] == 1
    assert found["lease_runs"] == 1
    assert found["replies"] == ["secret-sku-4711"] * 3


def test_stale_object_is_refused(found):
    assert found["refused"]


def test_agent_saw_our_statements(found):
    """Else the next test would show nothing."""
    if found["agent"] == "none":
        pytest.skip("the control has no agent")
    assert found["statements"], found["spans"]


def test_no_value_is_in_what_the_agent_sends(found):
    assert found["leaks"] == []
