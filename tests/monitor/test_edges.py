"""Rare states: a standby, a lock that was released during the read, a blank search."""

from contextlib import ExitStack

import pytest

from django_dblock import fenced_lock, inspect, run_once
from django_dblock.cli.advisory_hold import AdvisoryHold
from django_dblock.cli.list import _in_front
from django_dblock.core.application_name import named
from django_dblock.inspect import BlockingSession, LockWaits, OtherWait
from django_dblock.monitor import page
from django_dblock.monitor.wait_queues import queues
from tests.monitor.pages import shown, words
from tests.monitor.rows import lock

pytestmark = pytest.mark.django_db(transaction=True)


def blocker(pid, **changes):
    facts = {
        "pid": pid, "program": "psql", "keeps": 1, "holds": ("a row of t",), "waits_for": None,
        "blocked_by": (), "waiting": None, "transaction_age": 1.0, "user": "ann", "client": None,
        "state": "active", "query": "SELECT 1", "hidden": False, "backend_start": None,
    }  # fmt: skip
    return BlockingSession(**{**facts, **changes})


def test_monitor_says_that_server_is_a_standby(root, monkeypatch):
    monkeypatch.setattr(page, "lock_waits", lambda using, **_: LockWaits([], [], [], standby=True))
    assert "This server is a standby" in words(shown(root))


def test_list_follows_blockers_of_blockers():
    near, far, other = blocker(2, blocked_by=(3,)), blocker(3), blocker(9)
    waiting = lock(1, waits_for="a row of t", blocked_by=(2,))
    assert _in_front([near, far, other], [waiting]) == [near, far]


def test_ended_blocker_is_unnamed():
    wait = OtherWait(1, "tuple/1", "a row of t", 1.0, (5,))
    [queue] = queues([lock(1)], [], [], [wait])
    assert [(party.pid, party.name) for party in queue.holders] == [(5, "")]


def test_ended_holder_is_reported():
    hold = AdvisoryHold(named(("nobody",)), using=None, timeout=0)
    assert hold._holder() == "another transaction, which has just ended"
    hold.release()


@pytest.mark.parametrize("model", ["fencedlock", "idempotencykey"])
def test_blank_search_shows_all_rows(model, root):
    run_once("invoice", work=lambda: None)
    with fenced_lock("nightly", ttl=30):
        found = root.get(f"/admin/django_dblock/{model}/", {"q": "  "}).context["cl"]
    assert found.result_count == 1


@pytest.mark.parametrize(
    ("locked", "granted", "said"),
    [
        ("7", True, "took this lock"), ("8", True, "took another lock"),
        ("several", True, "took several locks"), ("7", False, "requests this lock"),
    ],
)  # fmt: skip
def test_last_statement_hides_the_packages_own(locked, granted, said):
    assert inspect._last_statement(locked, 7, granted=granted) == said


@pytest.mark.parametrize(
    ("name", "namespace", "own"),
    [("acme::a", "acme", True), ("a", "acme", False), ("a", "", True), ("acme::a", "", False)],
)
def test_namespace_decides_whose_lease_it_is(name, namespace, own, settings):
    settings.DBLOCK_NAMESPACE = lambda: namespace
    assert inspect.is_own_lease(name, namespace) is own


def test_pattern_of_leases_may_have_a_set():
    with ExitStack() as stack:
        for name in ("shard-1", "shard-2", "shard-x"):
            stack.enter_context(fenced_lock(name, ttl=30))
        found = inspect.fenced_leases(pattern="shard-[0-9]")
    assert [lease.name for lease in found] == ["shard-1", "shard-2"]


def test_unfinished_requests_are_counted_by_state():
    from tests.idempotency.rows import abandoned

    abandoned("a-key")
    assert inspect.count_unfinished_requests() == {"abandoned": 1}
