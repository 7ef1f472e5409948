"""Try the orders in which the statements of several actors can reach the server, one by one.

Each actor is a thread with a connection of its own, stopped before each statement, COMMIT and
ROLLBACK. Between two of them anything else may happen: a statement of another actor, the clock
moved on, a backend ended. What waits for a lock is seen in ``pg_blocking_pids`` and left alone.

The tree is walked by running again: a run follows a prefix of choices, then takes whatever comes
first, and each other choice on the way is a prefix for later, taken in an order that is mixed but
always the same, since few walks are whole. Bounded by its cost: leaving an actor
that could go on, and each event, costs 1. A state that was seen is not gone on from again; it is
what the actors have sent, and what they could see when they did.
"""

import queue
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg

from tests.helpers.actors import SEE_IT, Actor
from tests.helpers.observe import LIMIT

# The server's clock, as far on as a sequence says: nothing rolls that back, and all see it at once.
CLOCK = """
CREATE SCHEMA schedules;
CREATE SEQUENCE schedules.ahead MINVALUE 0 START 0;
CREATE FUNCTION schedules.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp()
        + (SELECT last_value FROM schedules.ahead) * interval ''1 second''';
"""


@contextmanager
def clocked(looking: psycopg.Connection[Any], tables: str) -> Iterator[psycopg.Connection[Any]]:
    """Have the clock, and in its schema the tables of a test; both are gone with it."""
    for statement in (CLOCK, SEE_IT, tables):
        looking.execute(statement)
    yield looking
    looking.execute("DROP SCHEMA schedules CASCADE")


@dataclass
class Schedule:
    """One order: what was chosen of what, and how it ended."""

    choices: list[str] = field(default_factory=list)
    points: list[tuple[list[str], str | None, int, bool]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    outcomes: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join([*self.log, repr(self.outcomes)])


class Explorer:
    """Walk the tree.

    Args:
        looking: a connection in autocommit that nobody else uses.
        actors: what each does, by name.
        events: what else may happen, by name, once for each time it is in the list; each is told
            the actors.
        digest: what is committed, in a form that does not depend on ids and times.
        bound: the cost a schedule may have.
    """

    def __init__(
        self,
        looking: psycopg.Connection[Any],
        actors: dict[str, Callable[[], Any]],
        events: list[tuple[str, Callable[["Explorer"], Any]]],
        digest: Callable[[], Any],
        bound: int = 3,
    ) -> None:
        self.looking, self.work, self.events = looking, actors, dict(events)
        self.times = [name for name, _ in events]
        self.digest, self.bound = digest, bound
        self.actors = {name: Actor(name) for name in actors}
        self._last = Actor("last")
        self.known: dict[Any, int] = {}
        self.runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        for actor in (*self.actors.values(), self._last):
            actor.jobs.put(None)
            for _ in range(100):  # a schedule that was left goes on to its end
                actor.go.put(None)
        for actor in (*self.actors.values(), self._last):
            actor.join(LIMIT)

    def alone(self, job: Callable[[], Any]) -> Any:
        """Run a job by itself; return its outcome."""
        actor = self._last
        actor.jobs.put(job)
        while actor.arrived.get(timeout=LIMIT) is not None:
            actor.go.put(None)
        return actor.outcome

    def walk(self, prepare: Callable[[], None], limit: int | None = None) -> Iterator[Schedule]:
        """Run one schedule after the other; the caller checks each, and its database."""
        open_: list[list[str]] = [[]]
        mixed = random.Random(1)
        while open_ and (limit is None or self.runs < limit):
            prefix = open_.pop(mixed.randrange(len(open_)))
            prepare()
            schedule = self._run(prefix)
            self.runs += 1
            for number, (options, current, cost, fresh) in enumerate(schedule.points):
                if number < len(prefix):
                    continue
                if not fresh:
                    break
                chosen = schedule.choices[number]
                open_.extend(
                    [*schedule.choices[:number], option]
                    for option in options
                    if option != chosen
                    and cost + self._price(option, current, options) <= self.bound
                )
            yield schedule

    def _price(self, option: str, current: str | None, options: list[str]) -> int:
        return int(option in self.events or (current in options and option != current))

    def _run(self, prefix: list[str]) -> Schedule:
        schedule = Schedule()
        current: str | None = None
        cost = 0
        left = list(self.times)
        for name, actor in self.actors.items():
            actor.seen, actor.open = (), False
            actor.jobs.put(self.work[name])
            actor.at = actor.arrived.get(timeout=LIMIT)
            actor.sent = False
        while True:
            ready = [name for name, actor in self.actors.items() if actor.at and not actor.sent]
            if not ready:
                stuck = [name for name, actor in self.actors.items() if actor.sent and actor.at]
                assert not stuck, f"all wait: {stuck}\n{schedule.text}"
                break
            options = ([current] if current in ready else []) + [
                name for name in ready if name != current
            ]
            options += list(dict.fromkeys(left))
            number = len(schedule.choices)
            world = self._world()
            fresh = number < len(prefix) or self._is_fresh(world, current, left, cost)
            # Where it is not the same again, it is another schedule, and as good.
            wanted = prefix[number] if number < len(prefix) else options[0]
            chosen = wanted if wanted in options else options[0]
            schedule.points.append((options, current, cost, fresh))
            schedule.choices.append(chosen)
            cost += self._price(chosen, current, options)
            if chosen in self.events:
                left.remove(chosen)
                schedule.events.append(chosen)
                schedule.log.append(f"-- {chosen}")
                self.events[chosen](self)
            else:
                actor = self.actors[chosen]
                schedule.log.append(f"{chosen}: {actor.at}")
                actor.seen = (hash((actor.seen, actor.at, world)),)
                actor.sent = True
                current = chosen
                actor.go.put(None)
            self._settle(schedule)
        schedule.outcomes = {name: actor.outcome for name, actor in self.actors.items()}
        return schedule

    def end_backend(self, name: str) -> None:
        """End the backend of an actor, wherever that is."""
        actor = self.actors[name]
        actor.ended = True
        self.looking.execute("SELECT pg_terminate_backend(%s, 60000)", [actor.pid])

    def move_clock(self, seconds: int) -> None:
        self.looking.execute(
            "SELECT setval('schedules.ahead', last_value + %s) FROM schedules.ahead", [seconds]
        )

    def _world(self) -> Any:
        begun = tuple((name, a.seen) for name, a in self.actors.items() if a.open)
        waiting = tuple(name for name, a in self.actors.items() if a.sent)
        return (self.digest(), begun, waiting)

    def _is_fresh(self, world: Any, current: str | None, left: list[str], cost: int) -> bool:
        state = (
            current,
            tuple(left),
            world,
            tuple((a.seen, a.at, a.sent) for a in self.actors.values()),
        )
        if self.known.get(state, self.bound + 1) <= cost:
            return False
        self.known[state] = cost
        return True

    def _settle(self, schedule: Schedule) -> None:
        """Wait until each is at its next statement, at its end, or waits for a lock.

        Who has gone on may have let another go on, so all are looked at again.
        """
        while any(self._has_arrived(name, schedule) for name in self.actors):
            pass

    def _has_arrived(self, name: str, schedule: Schedule) -> bool:
        actor = self.actors[name]
        if not (actor.sent and actor.at):
            return False
        for _ in range(3_000):
            try:
                actor.at = actor.arrived.get(timeout=0.02)
            except queue.Empty:
                [blocked] = self.looking.execute(
                    "SELECT cardinality(pg_blocking_pids(%s)) > 0", [actor.pid]
                ).fetchone()
                if blocked:
                    return False
            else:
                actor.sent = False
                if actor.at is None:
                    actor.open = False
                    schedule.log.append(f"{name} ends: {actor.outcome!r}"[:200])
                return True
        raise AssertionError(f"{name} hangs\n{schedule.text}")
