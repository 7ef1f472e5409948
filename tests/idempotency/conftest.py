"""Both ways in which atomic mode finds the connection."""

import pytest

from tests.idempotency import calling


@pytest.fixture(params=["own", "joined"])
def ask(request):
    """Ask a view, in the decorator's own transaction and in one that is open."""
    return {"own": calling.ask, "joined": calling.ask_joined}[request.param]
