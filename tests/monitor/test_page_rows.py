"""The rows of the monitor: order, limits and search."""

import sys
from datetime import UTC, datetime

import pytest

from django_dblock.inspect import LockWaits, Requests
from django_dblock.monitor import page
from tests.monitor.rows import lease, lock, request, wanted

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def made(locks=(), leases=(), requests=(), search=""):
    idle = sum(each.state != "leased" for each in requests)
    read = Requests(requests, idle, len(requests) - idle)
    return page.make(LockWaits(locks, [], []), leases, read, at=NOW, search=search)


def pids(section):
    return [session.lock.pid for session in section.rows]


def crowd_of_locks(count):
    return {"locks": [lock(1), *(wanted(pid, behind=[1]) for pid in range(2, count + 2))]}


def crowd_of_leases(count):
    return {"leases": [lease(waiting=tuple(f"web-{number}" for number in range(count)))]}


def crowd_of_permits(count):
    waiting = tuple(f"web-{number}" for number in range(count))
    permits = range(1, count + 1)
    return {
        "leases": [
            lease("api~permit", slot=slot, owner=f"holder-{slot}", waiting=waiting * (slot == 1))
            for slot in permits
        ]
    }


class TestCrowds:
    """A long queue is when somebody opens the page."""

    @pytest.mark.parametrize("crowd", [crowd_of_locks, crowd_of_leases, crowd_of_permits])
    @pytest.mark.parametrize("search", ["", "web-1"])
    def test_work_grows_with_the_queue_not_with_its_square(self, crowd, search):
        made(**crowd(10), search=search)  # what is done once
        few, many = (calls_of(lambda n=n: made(**crowd(n), search=search)) for n in (100, 400))
        assert many < 6 * few

    def test_each_waiter_of_a_queue_that_matches_is_shown(self):
        shown = made([*crowd_of_locks(3)["locks"], lock(11, "b"), wanted(12, "b")], search="b")
        assert [wait.party.pid for wait in shown.waits.rows] == [12]


def calls_of(function):
    """Count the calls of Python functions and steps of generators that the function makes."""
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


class TestSessions:
    def test_blockers_come_first_then_oldest_transactions(self):
        locks = [
            lock(1, "a", transaction_age=5), lock(2, "b", transaction_age=None),
            lock(3, "c", transaction_age=60), lock(4, "d"), wanted(9, "d"),
        ]  # fmt: skip
        assert pids(made(locks).sessions) == [4, 3, 1, 2]

    def test_session_with_many_locks_is_one_row(self):
        shown = made([lock(1, f"k{number}") for number in range(10_000)])
        [session] = shown.sessions.rows
        assert len(session.held) == page.MOST_NAMES
        assert session.more_held == 10_000 - page.MOST_NAMES
        assert shown.counts.locks == 10_000

    def test_contended_and_named_locks_come_first(self):
        locks = [lock(1, None, number=5), lock(1, "b"), lock(1, "c"), wanted(2, "c")]
        [session] = made(locks).sessions.rows
        assert [(held.name, held.waiters) for held in session.held] == [
            ("c", 1), ("b", 0), ("5", 0),
        ]  # fmt: skip
        assert session.waiters == 1

    def test_unnamed_locks_are_counted(self):
        locks = [lock(1, None, number=number) for number in range(40)]
        [session] = made([*locks, lock(1, "b"), wanted(2, None, number=7)]).sessions.rows
        assert [held.name for held in session.held] == ["7", "b"]
        assert session.more_held == 39
        [session] = made(locks).sessions.rows
        assert len(session.held) == page.MOST_NAMES

    def test_idle_blocker_is_highlighted(self):
        locks = [lock(1, "a"), wanted(2, "a"), lock(3, "b"), lock(4, "c", state="active")]
        found = {each.lock.pid: each.stands_still for each in made(locks).sessions.rows}
        assert found == {1: True, 3: False, 4: False}

    def test_waiting_holder_is_marked(self):
        locks = [lock(1, "a"), wanted(2, "a", waiting=7), lock(2, "b")]
        found = {each.lock.pid: each.waiting for each in made(locks).sessions.rows}
        assert found == {1: None, 2: 7}

    def test_prepared_transactions_stay_separate(self):
        assert made([lock(None, "a"), lock(None, "b")]).counts.sessions == 2

    def test_hundred_sessions_are_shown(self):
        section = made([lock(pid, f"k{pid}") for pid in range(1, 251)]).sessions
        assert (len(section.rows), section.left_out) == (100, 150)

    def test_query_is_one_escaped_line(self):
        [session] = made([lock(1, query="SELECT\n   1 \u202e")]).sessions.rows
        assert session.query == "SELECT 1 \\u202e"


class TestWaits:
    def test_longest_wait_is_first(self):
        locks = [
            lock(1, "a"), wanted(2, "a", behind=[1], waiting=3),
            wanted(3, "a", behind=[1, 2], waiting=2), lock(4, "b"),
            wanted(5, "b", behind=[4], waiting=9),
        ]  # fmt: skip
        shown = made(locks)
        assert [(wait.party.pid, wait.place, wait.behind) for wait in shown.waits.rows] == [
            (5, 1, ("4",)), (2, 1, ("1",)), (3, 2, ("1", "2")),
        ]  # fmt: skip
        assert (shown.counts.waiting, shown.counts.longest) == (3, 9)

    def test_wait_behind_many_holders_names_three(self):
        [wait] = made([wanted(9, behind=[1, 1, 2, 3, 4, 5, 0])]).waits.rows
        assert (wait.behind, wait.more_behind) == (("1", "2", "3"), 3)

    def test_wait_behind_a_prepared_transaction_says_so(self):
        [wait] = made([wanted(9, behind=[0])]).waits.rows
        assert wait.behind == ("prepared",)

    def test_wait_for_a_lease_in_turn_shows_its_place(self):
        shown = made(leases=[lease(waiting=("x", "y"))])
        assert [(wait.party.name, wait.place, wait.behind) for wait in shown.waits.rows] == [
            ("x", 1, ("web-1:1:Main",)), ("y", 2, ("web-1:1:Main",)),
        ]  # fmt: skip
        assert shown.counts.longest is None


class TestLeases:
    def test_wanted_leases_come_first_then_late_ones(self):
        leases = [
            lease("well", remaining=25.0), lease("soon", remaining=20.0),
            lease("kept", state="delayed", remaining=-5.0), lease("late", renewed=20, remaining=10),
            lease("wanted", waiting=("x",)),
        ]  # fmt: skip
        shown = made(leases=leases)
        assert [row.name for row in shown.leases.rows] == [
            "wanted", "late", "kept", "soon", "well",
        ]  # fmt: skip
        assert (shown.counts.leases, shown.counts.late) == (5, 1)

    @pytest.mark.parametrize(
        ("renewed", "remaining", "percent", "late"),
        [(3, 27, 90, False), (15, 15, 50, False), (16, 14, 47, True), (0, 0, 0, True)],
    )
    def test_percentage_of_the_ttl_left(self, renewed, remaining, percent, late):
        [row] = made(leases=[lease(renewed=renewed, remaining=remaining)]).leases.rows
        assert (row.percent, row.late) == (percent, late)

    def test_delayed_lease_is_not_late(self):
        [row] = made(leases=[lease(state="delayed", renewed=40, remaining=-10)]).leases.rows
        assert (row.percent, row.late) == (0, False)

    def test_metadata_is_readable(self):
        [row] = made(leases=[lease(metadata={"job": "sync", "by": "\u202e"})]).leases.rows
        assert row.metadata == "job: sync, by: \\u202e"


def test_requests_keep_their_order():
    requests = [request(1, state="abandoned"), request(2, state="free"), request(3)]
    shown = made(requests=requests)
    assert [row.request.id for row in shown.requests.rows] == [1, 2, 3]
    assert (shown.counts.requests, shown.counts.abandoned) == (3, 2)
    assert shown.requests.rows[0].name == "user:7:3f1c0a…"
    assert shown.requests.rows[0].what == "POST /pay/"
    assert shown.requests.rows[0].steps == "charge"


class TestSearch:
    LOCKS = (
        lock(1, "inventory:sku-1"), wanted(2, "inventory:sku-1", behind=[1]),
        lock(3, "order:7", user="batch"),
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "found"),
        [("INVENT", [1]), ("order", [3]), ("batch", [3]), ("shop", [1, 3]), ("3", [3]), ("x", [])],
    )
    def test_search_finds_sessions(self, text, found):
        assert pids(made(self.LOCKS, search=text).sessions) == found

    def test_search_finds_unshown_locks(self):
        locks = [lock(1, f"k{number:04}") for number in range(500)]
        assert pids(made(locks, search="k0499").sessions) == [1]

    def test_search_finds_queues(self):
        assert made(self.LOCKS, search="sku-1").waits.total == 1
        assert made(self.LOCKS, search="order").waits.total == 0
        assert made(self.LOCKS, search="order").picture.shapes == ()
        assert made(self.LOCKS, search="order").blockers.rows == ()

    def test_search_finds_leases_and_requests(self):
        shown = made(leases=[lease(), lease("other")], requests=[request()], search="nightly")
        assert [row.name for row in shown.leases.rows] == ["nightly"]
        assert shown.requests.rows == ()

    def test_search_does_not_change_the_counts(self):
        assert made(self.LOCKS, search="x").counts == made(self.LOCKS).counts


def test_hidden_sessions_are_noted():
    assert not made([lock(1)]).hidden
    assert made([lock(1), lock(2, hidden=True)]).hidden


def test_work_is_linear_in_locks():
    """There may be ten thousand, and hundreds of queues, every two seconds."""

    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    def times(queues):
        names = [f"lock-{number}" for number in range(queues)]
        locks = Counted(
            each
            for number, name in enumerate(names)
            for each in (lock(number + 1, name), wanted(number + 1000, name, behind=[number + 1]))
        )
        made(locks)
        return locks.times

    assert times(50) == times(1)
