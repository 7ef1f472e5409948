"""The orders in which the statements of two holders can reach the server, up to a bound.

Each walk is cut off after ``LIMIT`` orders; 0 tries all of them, which takes hours.
"""

import pytest
from django.db import connection

from django_dblock import fenced_lock, force_release
from django_dblock.exceptions import LockLost, LockTimeout
from django_dblock.sql import fencing as sql
from tests.helpers import observe, schedules

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]

LIMIT = 6

TABLES = "CREATE TABLE schedules.effect (id serial, run text, token bigint)"
RESET = """
TRUNCATE django_dblock_fencedlock, schedules.effect;
SELECT setval('schedules.ahead', 0);
"""
EVENTS = {
    "the lease ends": lambda tree: tree.move_clock(61),
    "a's backend ends": lambda tree: tree.end_backend("a"),
}
DIGEST = """
SELECT (SELECT last_value FROM schedules.ahead),
    (SELECT array_agg(run ORDER BY id) FROM schedules.effect),
    (SELECT row(grants, owner, token >= extract(epoch FROM clock_timestamp()) * 1000,
        round(extract(epoch FROM expires_at - clock_timestamp()) / 10))::text
        FROM django_dblock_fencedlock)
"""


@pytest.fixture
def looking(connect):
    with schedules.clocked(connect(), TABLES) as own:
        yield own


def write(run, token):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO schedules.effect (run, token) VALUES (%s, %s)", [run, token])


def hold(run, renews):
    def act():
        with fenced_lock("key", ttl=60, heartbeat=False) as lock:
            if renews:
                lock.renew()
            with lock.guard():
                write(run, lock.token)
            return lock.token

    return act


def end_by_force():
    held = force_release("key")
    with connection.cursor() as cursor:
        cursor.execute("SELECT token FROM django_dblock_fencedlock")
        row = cursor.fetchone()
    if held:
        write("operator", row[0])
    return held


def explore(looking, *events, renews=False, force=False, limit=LIMIT):
    """Walk, and check each schedule; return how many there were."""
    actors = {run: hold(run, renews) for run in "ab"}
    if force:
        actors["force"] = end_by_force
    with schedules.Explorer(
        looking,
        actors,
        [(name, EVENTS[name]) for name in events],
        lambda: repr(looking.execute(DIGEST).fetchone()),
        3,
    ) as tree:
        for schedule in tree.walk(lambda: looking.execute(RESET), limit or None):
            try:
                check(looking, schedule)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{schedule.text}") from error
        return tree.runs


def check(looking, schedule):
    effects = looking.execute("SELECT run, token FROM schedules.effect ORDER BY id").fetchall()
    tokens = [token for run, token in effects if run != "operator"]
    assert tokens == sorted(tokens), f"a token fell: {effects}"
    for number, (run, passed) in enumerate(effects):
        if run == "operator":
            assert all(token >= passed for _, token in effects[number:]), f"fenced off: {effects}"
    mine = [run for run, _ in effects]
    for run in "ab":
        outcome = schedule.outcomes[run]
        ended = f"{run}'s backend ends" in schedule.events
        if isinstance(outcome, int):
            assert dict(effects)[run] == outcome
        elif isinstance(outcome, LockTimeout):
            assert run not in mine
        elif not isinstance(outcome, LockLost):
            assert ended, repr(outcome)
        assert mine.count(run) <= 1
    force = schedule.outcomes.get("force")
    assert not isinstance(force, BaseException), repr(force)
    observe.until(lambda: not observe.locks(looking), "no advisory lock is left", 5)


@pytest.mark.parametrize(
    ("events", "more"),
    [
        (["the lease ends"], {}),
        (["the lease ends"], {"renews": True}),
        (["the lease ends"], {"force": True}),
        ([], {"renews": True, "force": True}),
        (["the lease ends", "a's backend ends"], {}),
    ],
)
def test_tokens_grow_and_stale_holders_write_nothing(looking, events, more):
    assert explore(looking, *events, **more) > 1


def test_negative_twin_guard_without_a_lock_is_found(looking, monkeypatch):
    """The negative twin."""
    assert "FOR KEY SHARE" in sql.GUARD
    monkeypatch.setattr(sql, "GUARD", sql.GUARD.replace("FOR KEY SHARE", ""))
    with pytest.raises(AssertionError, match="a token fell"):
        explore(looking, "the lease ends", limit=400)
