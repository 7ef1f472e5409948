"""Hostile keys in each place that takes a key: locked unchanged, or refused by name."""

import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from django_dblock import (
    FencedLock,
    IdempotencyKey,
    advisory_lock,
    advisory_locks,
    fenced_lock,
    idempotent,
    run_once,
)
from django_dblock.idempotency.identity import _is_nobody
from tests.app import idempotent_views as views
from tests.idempotency import calling

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss]

NASTY = (
    "'",
    '"',
    "';DROP TABLE django_dblock_fencedlock;--",
    "$$; SELECT pg_sleep(60); $$",
    "%s %(name)s %%",
    "\\'; \\x00",
    "\x00",
    "a\x00b",
    "\n\r\t\x1b[2J",
    "\ud800",
    "é",
    "é",
    "\u202e\u2066 lock[x] ",
    "\U0001d518" * 300,
    "x" * 1_000_000,
    b"\x00\xff'",
    -(2**63),
    2**64,
)
ANYTHING = st.one_of(
    st.text(st.characters(exclude_categories=[])),  # surrogates and NUL, too
    st.binary(max_size=200),
    st.integers(),
    st.sampled_from(NASTY),
)


def nasty(test):
    """Each of these, and forty that nobody has thought of."""
    for one in NASTY:
        test = example(one)(test)
    relaxed = [HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=40, suppress_health_check=relaxed)(given(ANYTHING)(test))


@pytest.fixture(autouse=True)
def nothing_else_has_happened(transactional_db):
    """The tables, and the settings of the session, are as they were."""
    look = (
        "SELECT current_setting('application_name'), to_regclass('django_dblock_fencedlock')::text"
    )
    with connection.cursor() as cursor:
        cursor.execute(look)
        before = cursor.fetchone()
    yield
    with connection.cursor() as cursor:
        cursor.execute(look)
        assert cursor.fetchone() == before


@nasty
def test_advisory_key_is_no_sql(part):
    with advisory_lock("fuzz", part, timeout=0), advisory_locks([("more", part)], timeout=0):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), current_setting('application_name') FROM pg_locks "
                "WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            )
            held, name = cursor.fetchone()
    assert held == 2
    assert name.isascii()
    assert name.isprintable()


@nasty
def test_lease_name_is_no_sql(part):
    with fenced_lock("fuzz", part, ttl=30, heartbeat=False) as lock, lock.guard():
        row = FencedLock.objects.get(token=lock.token)
    assert row.token == lock.token
    assert row.name.isprintable()


@nasty
def test_key_of_run_once_is_no_sql(part):
    ran = []
    results = [run_once("fuzz", part, work=lambda: ran.append(1) or 1) for _ in range(2)]
    assert results == [1, 1]
    assert len(ran) <= 1, "none if the same key was here before"


@nasty
def test_key_of_a_request_is_no_sql(part):
    """From a form's field, which can hold anything; a header holds less."""
    view = idempotent(scope=views.client, key=lambda request: part)(views.answers)
    assert calling.ask(view, key=None).status_code in (201, 400)


@nasty
def test_scope_of_a_request_is_no_sql(part):
    if _is_nobody(part):
        return  # refused; tests/idempotency/test_scope.py
    view = idempotent(scope=lambda request: part)(views.answers)
    assert calling.ask(view).status_code == 201
    assert calling.ask(view).headers["Idempotent-Replayed"] == "true"
    assert IdempotencyKey.objects.exists()


@nasty
def test_body_and_path_of_a_request_are_no_sql(part):
    body = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
    request = calling.request(body=body, key='"b"')
    request.path = str(part).encode("utf-8", "replace").decode()
    assert views.default(request, "201").status_code == 201
    IdempotencyKey.objects.all().delete()


@nasty
def test_metadata_of_a_lease_is_no_sql(part):
    """Stored, or refused before any SQL."""
    try:
        with fenced_lock("fuzz", ttl=30, heartbeat=False, metadata={"of": part}) as lock:
            assert lock.metadata == {"of": part}
    except (TypeError, ValueError):
        assert not isinstance(part, int)
