"""What an operator meets: somebody's backend, a terminal to answer on, a role without powers."""

import sys

import pytest
from django.db import connection

from tests.helpers.commands import Terminal

LOCK = "SELECT pg_advisory_lock(1)"
STARTED = "SELECT backend_start FROM pg_stat_activity WHERE pid = %s"


def pid_of(rival):
    return rival.info.backend_pid


def is_gone(observer, pid):
    return observer.execute(STARTED, [pid]).fetchone() is None


def is_alive(rival):
    return rival.execute("SELECT 1").fetchone() == (1,)


@pytest.fixture
def holding(rival):
    """Somebody who holds a lock on the level of the session."""
    rival.execute(LOCK)
    yield rival
    if not rival.closed:
        rival.close()


@pytest.fixture
def plain_role(observer, monkeypatch):
    """Connect as a role that may lock, and nothing more."""
    observer.execute("DROP ROLE IF EXISTS dblock_plain; CREATE ROLE dblock_plain LOGIN")
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "USER", "dblock_plain")
    yield "dblock_plain"
    connection.close()
    monkeypatch.undo()
    observer.execute("DROP ROLE dblock_plain")


@pytest.fixture
def says(monkeypatch):
    """What the operator types."""
    return lambda text: monkeypatch.setattr(sys, "stdin", Terminal(f"{text}\n"))
