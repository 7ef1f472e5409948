"""Both ways in which atomic mode finds the connection."""

import pytest
from django.db import connection

from tests.idempotency import calling


@pytest.fixture(params=["own", "joined"])
def ask(request):
    """Ask a view, in the decorator's own transaction and in one that is open."""
    return {"own": calling.ask, "joined": calling.ask_joined}[request.param]


@pytest.fixture
def limited(db):
    """No statement of the test's own connection waits for ever."""
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '90s'")
    yield
    with connection.cursor() as cursor:
        cursor.execute("RESET statement_timeout")
