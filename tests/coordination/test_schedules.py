"""The orders in which the statements of the coordination parts can reach the server.

As ``tests/fencing/test_schedules.py``: each walk is cut off after ``LIMIT`` orders; 0 tries all of
them.
"""

from functools import partial
from math import ceil, inf

import pytest
from django.db import connection, transaction

from django_dblock import (
    fenced_rwlock,
    fenced_semaphore,
    latch,
    partitions,
    purge_fenced_locks,
)
from django_dblock.coordination.partitions import Share
from django_dblock.core.connection import fetch
from django_dblock.exceptions import LockLost, LockTimeout
from django_dblock.fencing import store
from django_dblock.sql import coordination as sql
from django_dblock.sql import fencing, rwlock
from tests.helpers import observe, schedules

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]

LIMIT = 12
TTL = 60

TABLES = "CREATE TABLE schedules.effect (id serial, run text, slot int, token bigint)"
RESET = """
TRUNCATE django_dblock_fencedlock, django_dblock_fencedticket, django_dblock_latchpart,
    schedules.effect;
SELECT setval('schedules.ahead', 0);
"""
DIGEST = """
SELECT (SELECT last_value FROM schedules.ahead),
    (SELECT array_agg(run || slot ORDER BY id) FROM schedules.effect),
    (SELECT array_agg(row(name, slot, grants, owner,
        round(extract(epoch FROM expires_at - clock_timestamp()) / 10))::text ORDER BY name, slot)
        FROM django_dblock_fencedlock)
"""
EVENTS = {
    "the leases end": lambda tree: tree.move_clock(TTL + 1),
    "a's backend ends": lambda tree: tree.end_backend("a"),
}


@pytest.fixture
def looking(connect):
    with schedules.clocked(connect(), TABLES) as own:
        yield own


class Walk:
    """One protocol under the explorer: what its actors do, and what must hold after each order."""

    def __init__(self, looking):
        self.looking = looking
        self.ends = {}

    def prepare(self):
        self.ends.clear()
        self.looking.execute(RESET)

    def digest(self):
        return repr(self.looking.execute(DIGEST).fetchone())

    def explore(self, *events, limit=LIMIT):
        """Walk, and check each schedule; return how many there were."""
        with schedules.Explorer(
            self.looking,
            self.actors(),
            [(name, EVENTS[name]) for name in events],
            self.digest,
            3,
        ) as tree:
            for schedule in tree.walk(self.prepare, limit or None):
                try:
                    self.check(schedule, tree)
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{schedule.text}") from error
            return tree.runs

    def note(self, run, *leases):
        """Record when the leases that an actor holds now will have ended."""
        self.ends[run] = min(lease.expires_at for lease in leases)

    def effects(self):
        return self.looking.execute(
            "SELECT run, slot, token FROM schedules.effect ORDER BY id"
        ).fetchall()

    def check_outcomes(self, schedule):
        """A lease is lost only if its time is up; all else that is raised has its cause."""
        [now] = self.looking.execute("SELECT schedules.clock_timestamp()").fetchone()
        for run, outcome in schedule.outcomes.items():
            if isinstance(outcome, LockLost):
                assert self.ends[run] <= now, f"{run}'s lease was lost before its end"
            elif isinstance(outcome, BaseException) and not isinstance(outcome, LockTimeout):
                assert f"{run}'s backend ends" in schedule.events, repr(outcome)

    def check_tokens(self):
        """Of each slot, what is committed under a newer grant is never followed by an older."""
        newest = {}
        for run, slot, token in self.effects():
            assert newest.get(slot, (0, ""))[0] <= token, f"a token fell: {run}, slot {slot}"
            assert newest.get(slot) is None or newest[slot][0] < token or newest[slot][1] == run
            newest[slot] = (token, run)


def write(run, slot, token):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO schedules.effect (run, slot, token) VALUES (%s, %s, %s)",
            [run, slot, token],
        )


class Semaphore(Walk):
    """Two want two of three permits, and one wants one."""

    units = {"a": 2, "b": 2, "c": 1}  # noqa: RUF012 - a constant

    def actors(self):
        return {run: partial(self.hold, run, units) for run, units in self.units.items()}

    def hold(self, run, units):
        with fenced_semaphore("key", permits=3, units=units, ttl=TTL, heartbeat=False) as permit:
            self.note(run, permit)
            with permit.guard():
                for trust in permit.trusts:
                    write(run, trust.place.slot, trust.token)
        return permit.slots

    def check(self, schedule, tree):
        self.check_tokens()
        self.check_outcomes(schedule)
        effects = self.effects()
        for run, units in self.units.items():
            outcome = schedule.outcomes[run]
            mine = {slot for found, slot, _ in effects if found == run}
            assert len(mine) in (0, units), f"{run} has some of its permits only: {mine}"
            if isinstance(outcome, tuple):
                assert mine == {*outcome}
            elif isinstance(outcome, LockTimeout):
                assert not mine
        refused = {r for r, found in schedule.outcomes.items() if isinstance(found, LockTimeout)}
        if not schedule.events:  # a guard that is open after its lease has ended keeps its slot
            assert "c" not in refused, "one permit was free at all times"
        assert not {"a", "b"} <= refused, "both were refused, and neither held anything"
        tree.move_clock(TTL + 1)
        assert tree.alone(lambda: self.hold("z", 3)) == (0, 1, 2), "a permit has leaked"
        observe.until(lambda: not observe.locks(self.looking), "no advisory lock is left", 5)


@pytest.mark.parametrize("events", [[], ["the leases end"], ["the leases end", "a's backend ends"]])
def test_semaphore_gives_all_units_or_none_and_no_permit_twice(looking, events):
    assert Semaphore(looking).explore(*events) > 1


@pytest.mark.parametrize(
    ("module", "name", "whole", "instead", "message"),
    [
        (fencing, "GUARD", "FOR KEY SHARE", "", "a token fell"),
        (
            sql,
            "ACQUIRE_SLOTS",
            "WHERE (SELECT count(*) FROM free) >= %(at_least)s",
            "WHERE true",
            "some of its permits only",
        ),
        (
            sql,
            "ACQUIRE_SLOTS",
            """
        AND expires_at + lock_delay <= clock_timestamp()
        AND (""",
            """
        AND (""",
            "lost before its end",
        ),
    ],
    ids=["guard", "units", "expiry"],
)
def test_negative_twins_of_the_semaphore_are_found(
    looking, monkeypatch, module, name, whole, instead, message
):
    """The negative twins."""
    text = getattr(module, name)
    assert whole in text
    monkeypatch.setattr(module, name, text.replace(whole, instead))
    with pytest.raises(AssertionError, match=message):
        Semaphore(looking).explore("the leases end", limit=400)


class ReadersAndWriter(Walk):
    """One reads, one writes and then reads on, one writes, and a purge finds an old gate."""

    OLD_GATE = """
        INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at, renewed_at,
            expires_at, lock_delay, grants, metadata)
        SELECT 'key~rwlock', 0, 1, '', ago, ago, ago, interval '0', 0, '{}'
        FROM (SELECT clock_timestamp() - interval '1 day') AS day (ago)
    """
    BESIDE = """
        SELECT count(*) FROM django_dblock_fencedlock AS writer, django_dblock_fencedlock AS reader
        WHERE writer.slot = 0 AND reader.slot > 0
            AND writer.expires_at > schedules.clock_timestamp()
            AND reader.expires_at > schedules.clock_timestamp()
    """

    def __init__(self, looking, names):
        super().__init__(looking)
        self.names = names
        self.lock = fenced_rwlock("key")

    def prepare(self):
        super().prepare()
        self.looking.execute(self.OLD_GATE)

    def digest(self):
        assert self.looking.execute(self.BESIDE).fetchone() == (0,), "a writer beside a reader"
        return super().digest()

    def actors(self):
        known = {
            "writer": self.write_and_read,
            "reader": self.read,
            "other": self.write,
            "purge": partial(purge_fenced_locks, idle=3_600),
        }
        return {name: known[name] for name in self.names}

    def read(self):
        with self.lock.read(ttl=TTL, heartbeat=False) as reading:
            self.note("reader", reading)
            self.use("read", reading)
        return "read"

    def write(self):
        with self.lock.write(ttl=TTL, heartbeat=False) as writing:
            self.note("other", writing)
            self.use("write", writing)
        return "written"

    def write_and_read(self):
        with self.lock.write(ttl=TTL, heartbeat=False) as writing:
            self.note("writer", writing)
            self.use("write", writing)
            with writing.downgrade() as reading:
                self.note("writer", reading)
                self.use("read", reading)
        return "written"

    @staticmethod
    def use(how, lease):
        with lease.guard():
            write(how, 0, lease.token)
            write(how, 1, lease.token)

    def check(self, schedule, tree):
        self.check_outcomes(schedule)
        newest = {"read": 0, "write": 0}
        for how, _, token in self.effects():
            after = newest["write"] if how == "read" else max(newest.values())
            assert token >= after, f"a token fell: {how}"
            newest[how] = max(newest[how], token)
        leases = [schedule.outcomes[name] for name in schedule.outcomes if name != "purge"]
        assert not all(isinstance(outcome, LockTimeout) for outcome in leases), "nobody got in"
        tree.move_clock(TTL + 1)
        assert tree.alone(self.write) == "written"
        assert self.effects()[-1][2] > max(newest.values()), "the last writer has no newer token"


@pytest.fixture
def one_by_one(monkeypatch):
    """Send the statements of a grant one by one, so that names come between them."""
    monkeypatch.setattr(store, "_takes_several", lambda connection: False)


@pytest.mark.parametrize(
    ("names", "events"),
    [
        (["writer", "reader"], []),
        (["writer", "reader"], ["the leases end"]),
        (["writer", "reader", "other"], ["the leases end"]),
        (["writer", "reader", "purge"], []),
        (["writer", "other", "purge"], ["the leases end"]),
    ],
)
@pytest.mark.usefixtures("one_by_one")
def test_nobody_writes_beside_a_reader_and_no_token_falls(looking, names, events):
    assert ReadersAndWriter(looking, names).explore(*events) > 1


@pytest.mark.parametrize(
    ("module", "names", "events", "changes", "message"),
    [
        (
            fencing,
            ["writer", "reader"],
            ["the leases end"],
            [("GUARD", "FOR KEY SHARE", "")],
            "a token fell",
        ),
        (
            rwlock,
            ["reader", "other"],
            [],
            [
                ("LOCK_GATE", "FOR NO KEY UPDATE", ""),
                ("ACQUIRE_READ", "FOR UPDATE SKIP LOCKED\n), free", "FOR UPDATE\n), free"),
                ("ACQUIRE_WRITE", "FOR UPDATE SKIP LOCKED\n), readers", "FOR UPDATE\n), readers"),
            ],
            "a writer beside a reader",
        ),
        (
            rwlock,
            ["writer", "other"],
            ["the leases end"],
            [
                (
                    "DOWNGRADE",
                    """AND token = %(token)s
        AND expires_at > clock_timestamp()""",
                    "",
                )
            ],
            "lost before its end",
        ),
        (
            fencing,
            ["writer", "reader", "purge"],
            ["the leases end"],
            [("PURGE", "- %(idle)s * interval '1 second'", "+ %(idle)s * interval '1 second'")],
            "lost before its end",
        ),
    ],
    ids=["guard", "gate", "downgrade", "purge"],
)
@pytest.mark.usefixtures("one_by_one")
def test_negative_twins_of_the_read_write_lock_are_found(
    looking, monkeypatch, module, names, events, changes, message
):
    """The negative twins."""
    for name, whole, instead in changes:
        text = getattr(module, name)
        assert whole in text
        monkeypatch.setattr(module, name, text.replace(whole, instead))
    with pytest.raises(AssertionError, match=message):
        ReadersAndWriter(looking, names).explore(*events, limit=400)


class PartsAndWaiter(Walk):
    """Two parts are counted, one of them twice or in vain; one looks, and one resets."""

    WAITER = """
        INSERT INTO django_dblock_fencedticket (name, slot, owner, expires_at)
        VALUES ('key~latch', 0, 'somebody', clock_timestamp() + interval '1 day')
    """
    PARTS = "SELECT array_agg(part ORDER BY part) FROM django_dblock_latchpart"

    def __init__(self, looking, names):
        super().__init__(looking)
        self.names = names
        self.latch = latch("key", parties=["one", "two"])
        self.states = []
        self.woken = []
        looking.execute("LISTEN django_dblock")
        looking.add_notify_handler(self.woken.append)

    def prepare(self):
        super().prepare()
        self.looking.execute(self.WAITER)
        self.states.clear()
        self.woken.clear()

    def digest(self):
        [parts] = self.looking.execute(self.PARTS).fetchone()
        self.states.append(parts or [])
        return repr(parts)

    def actors(self):
        known = {
            "one": partial(self.count, "one"),
            "two": partial(self.count, "two"),
            "again": partial(self.count, "two"),
            "in vain": self.count_in_vain,
            "wait": self.wait,
            "reset": self.latch.reset,
        }
        return {name: known[name] for name in self.names}

    def count(self, part):
        with transaction.atomic():
            return self.latch.count_down(part)

    def count_in_vain(self):
        with transaction.atomic():
            self.latch.count_down("two")
            transaction.set_rollback(True)

    def wait(self):
        self.latch.wait(timeout=0)
        return "open"

    def check(self, schedule, tree):
        self.check_outcomes(schedule)
        self.digest()  # the last state
        sent = [line for line in schedule.log if " ends: " not in line]
        for state, line in zip(self.states, sent, strict=False):
            if line.startswith("wait: WITH parts"):
                opened = schedule.outcomes["wait"] == "open"
                assert opened == (state == ["one", "two"]), f"looked at {state}, open: {opened}"
        outcomes = [schedule.outcomes.get(name) for name in ("one", "two", "again")]
        forgotten = schedule.outcomes.get("reset", 0)
        left = self.states[-1]
        assert outcomes.count(True) == len(left) + forgotten, f"{outcomes}, {forgotten}, {left}"
        if "reset" not in self.names and left == ["one", "two"]:
            observe.until(self.is_woken, "the waiter was told that the latch is open", 2)
        tree.alone(partial(self.count, "one"))
        tree.alone(partial(self.count, "two"))
        assert tree.alone(self.wait) == "open"

    def is_woken(self):
        self.looking.execute("SELECT")
        return self.woken


@pytest.mark.parametrize(
    "names",
    [
        ["one", "two", "wait"],
        ["one", "two", "again", "in vain"],
        ["one", "in vain", "wait"],
        ["one", "two", "wait", "reset"],
        ["two", "again", "reset"],
    ],
)
def test_latch_counts_parts_once_and_opens_at_the_last_commit(looking, names):
    assert PartsAndWaiter(looking, names).explore() > 1


@pytest.mark.parametrize(
    ("name", "whole", "instead", "message"),
    [
        ("COUNT_DOWN", "DO NOTHING", "DO UPDATE SET done_at = excluded.done_at", "True, True"),
        ("LOOK_AT_LATCH", "%(parties)s - count(*)", "%(parties)s - 1 - count(*)", "looked at"),
    ],
    ids=["count", "look"],
)
def test_negative_twins_of_the_latch_are_found(looking, monkeypatch, name, whole, instead, message):
    """The negative twins."""
    text = getattr(sql, name)
    assert whole in text
    monkeypatch.setattr(sql, name, text.replace(whole, instead))
    with pytest.raises(AssertionError, match=message):
        PartsAndWaiter(looking, ["one", "two", "again", "wait"]).explore(limit=400)


def test_negative_twin_latch_waking_before_commit_is_found(looking, monkeypatch):
    """The negative twin: of two parts counted at the same time, neither sees the other."""
    monkeypatch.setattr(
        latch,
        "_wake_at_commit",
        lambda self, _: fetch(connection, sql.WAKE_LATCH, self._parameters),
    )
    with pytest.raises(AssertionError, match="the waiter was told"):
        PartsAndWaiter(looking, ["one", "two"]).explore(limit=400)


class Workers(Walk):
    """Two split three partitions, while a third joins and leaves, or dies."""

    def __init__(self, looking, third):
        super().__init__(looking)
        self.third = third
        self.lost = []

    def prepare(self):
        super().prepare()
        self.lost.clear()

    def actors(self):
        both = {run: partial(self.work, run) for run in "ab"}
        third = {"joins": partial(self.work, "c"), "dies": self.die}
        return {**both, "c": third[self.third]}

    def block(self):
        return partitions("key", count=3, ttl=TTL)

    def work(self, run):
        with self.block() as mine:
            self.use(run, mine)
            mine.balance()
            self.use(run, mine)
        return "left"

    def die(self):
        """End as a process does that is killed: nothing is released, or renewed."""
        mine = self.block()._join()
        try:
            self.use("c", mine)
        finally:
            for lease in (mine._worker, *mine._owned.values()):
                lease.stop_renewing()
        return "died"

    def use(self, run, mine):
        share = ceil(3 / max(mine.workers, 1))
        assert len(mine) <= share, f"{run} has more than its share"
        mine._due = inf  # it balances where the test says so
        for part in mine if len(mine) else ():
            with part, part.guard():
                write(run, part.number, part.token)
            if part.lost:
                self.lost.append((run, part.expires_at))

    def own_all(self):
        with self.block() as mine:
            return mine.numbers

    def check(self, schedule, tree):
        self.check_tokens()
        self.check_outcomes(schedule)
        [now] = self.looking.execute("SELECT schedules.clock_timestamp()").fetchone()
        for run, end in self.lost:
            assert end <= now, f"{run}'s partition was lost before its end"
        if schedule.events or self.third == "dies":
            tree.move_clock(TTL + 1)
        assert tree.alone(self.own_all) == (0, 1, 2), "not every partition is owned again"


@pytest.mark.parametrize("third", ["joins", "dies"])
@pytest.mark.parametrize("events", [[], ["the leases end"]])
def test_no_partition_is_used_twice_and_each_is_owned_again(looking, third, events):
    assert Workers(looking, third).explore(*events, limit=LIMIT // 2) > 1


@pytest.mark.parametrize(
    ("module", "name", "whole", "instead", "message"),
    [
        (
            sql,
            "ACQUIRE_SLOTS",
            """
        AND expires_at + lock_delay <= clock_timestamp()
        AND (""",
            """
        AND (""",
            "lost before its end",
        ),
        (sql, "WORKERS", "> clock_timestamp()", "> '-infinity' AND grants > 0", "owned again"),
        (Share, "_give_up", None, lambda self, surplus: None, "more than its share"),
    ],
    ids=["expiry", "workers", "share"],
)
def test_negative_twins_of_partitions_are_found(
    looking, monkeypatch, module, name, whole, instead, message
):
    """The negative twins."""
    if whole is not None:
        text = getattr(module, name)
        assert whole in text
        instead = text.replace(whole, instead)
    monkeypatch.setattr(module, name, instead)
    with pytest.raises(AssertionError, match=message):
        Workers(looking, "dies").explore("the leases end", limit=400)
