"""The heartbeat: one daemon thread that renews every lease of this process, and notices losses.

It starts with the first lease and ends with the last: at once where it has a connection, which ends
with it, else a moment later, because starting a thread for each of many short leases would cost
more than all the rest of them. A beat is one statement for all leases of a database that are due;
what fails is tried again until the leases' time is up. After a fork the child has none of this: the
leases are the parent's, and so are its connections, which are neither used nor closed there.
"""

import logging
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import ceil, frexp, inf
from typing import Any, NamedTuple

from django_dblock.core.connection import after_fork_in_child, bounded, dedicated, fetch, unwrapped
from django_dblock.fencing.deadline import GONE, Trust, now
from django_dblock.fencing.store import in_schema, renewal_parameters, unreplicated
from django_dblock.sql import fencing as sql

# One beat: renew many leases in one statement, on a connection of its own.


_LOOK = 0.05
"""Seconds between two looks at the clock while the server is silent."""

_CONNECT = 2
"""The shortest time the driver can be given for connecting, in seconds."""


class Outcome(NamedTuple):
    """The leases that one statement did not renew.

    Attributes:
        gone: those that somebody else has, or that were released.
        skipped: those whose row was locked for a moment, and that are still ours.
    """

    gone: list[Trust]
    skipped: list[Trust]


class Line:
    """The heartbeat's own connection to one database: never a caller's, and none of a pool's.

    A caller's may be in the middle of a transaction, and a pool may have none left to give.
    """

    def __init__(self, alias: str) -> None:
        self._wrapper = dedicated(alias)
        options = self._wrapper.settings_dict["OPTIONS"]
        options["application_name"] = f"{options.get('application_name', '')} heartbeat".strip()
        self._options = options

    def renew(
        self,
        trusts: Iterable[Trust],
        *,
        patience: float,
        schema: str = "",
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Outcome:
        """Renew the leases; return those of which the table knows nothing, and those it skipped.

        Args:
            trusts: the leases, all of this database and schema.
            patience: seconds; a server that is silent for longer has failed.
            schema: where their rows are, quoted.
            meanwhile: called again and again while the server is silent.

        Raises:
            Exception: it failed, for all of them; nobody knows what was done.
        """
        wanted = {(trust.place.name, trust.place.slot, trust.token): trust for trust in trusts}
        leases = [(trust.place, trust.token, trust.ttl) for trust in wanted.values()]
        ttls = {key: trust.ttl for key, trust in wanted.items()}
        outcome = Outcome([], [])
        try:
            self._connect(patience)
            before = now()
            statement = in_schema(sql.RENEW, schema)
            rows = self._ask(statement, renewal_parameters(leases), before + patience, meanwhile)
            for name, slot, token, expires_at, ours in rows:
                trust = wanted[name, slot, token]
                if expires_at is not None:
                    trust.extend(before, ttls[name, slot, token], expires_at)
                else:
                    (outcome.skipped if ours else outcome.gone).append(trust)
        except BaseException:
            self.close()
            raise
        return outcome

    def close(self) -> None:
        """Close the heartbeat's connection; it reconnects on the next renewal."""
        self._wrapper.close()

    def _connect(self, patience: float) -> None:
        self._options["connect_timeout"] = max(_CONNECT, ceil(patience))
        self._wrapper.ensure_connection()

    def _ask(
        self,
        statement: str,
        parameters: dict[str, Any],
        until: float,
        meanwhile: Callable[[], object],
    ) -> list[Any]:
        with (
            unreplicated(self._wrapper.connection) as warnings,
            _patience(self._wrapper.connection, until, meanwhile),
        ):
            rows = fetch(self._wrapper, statement, parameters)
        if warnings:
            raise TimeoutError(warnings[0])
        return rows


@contextmanager
def _patience(given: Any, until: float, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Let the driver wait for the server no longer than until then.

    A driver that is hidden in a proxy waits as long as it does by itself.
    """
    driver: Any = unwrapped(given)
    if driver is None:
        yield
        return
    plain_wait = type(driver).wait

    def wait(generator: Any, interval: float = _LOOK, **more: Any) -> Any:
        waiting = bounded(generator, until, meanwhile)
        return plain_wait(driver, waiting, min(interval, _LOOK), **more)

    driver.wait = wait
    try:
        yield
    finally:
        del driver.wait


logger = logging.getLogger("django_dblock.fencing")

_LONGEST_SILENCE = 5.0
"""Seconds to wait for one answer, at most: leases of other databases want their beat, too."""

_SHORTEST_BREAK, _LONGEST_BREAK = 0.05, 1.0
"""Seconds between a beat that failed and the next."""

_MOMENT = 0.25
"""Seconds after which a thread that never had anything to renew has found out that it can end."""


class Batch(NamedTuple):
    """What one statement can renew: leases of one database, one schema, and of similar ttls.

    A beat is given up after a third of its shortest ttl. Were the sizes mixed, one short lease
    would end the beats of a thousand long ones, which take longer than that.
    """

    alias: str
    schema: str
    size: int


def _batch_of(trust: Trust) -> Batch:
    _, exponent = frexp(trust.ttl)
    return Batch(trust.place.using, trust.place.schema, exponent // 3)


class Watch:
    """Looks at the deadlines of a batch while its beat waits for the server."""

    def __init__(self, trusts: list[Trust]) -> None:
        self._trusts = trusts
        self._next = min(trust.deadline for trust in trusts)

    def look(self) -> None:
        """Tell those whose time is up, at once, that they are lost."""
        if now() < self._next:
            return
        self._trusts = [trust for trust in self._trusts if trust.reason is None]
        self._next = min((trust.deadline for trust in self._trusts), default=inf)


class Heartbeat:
    """The leases that are watched, when each is due, and the thread that sees to it."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Trust, float | None] = {}  # None: watched, but not renewed
        self._thread: threading.Thread | None = None
        self._lines: dict[str, Line] = {}
        self._wakes = 0.0

    def watch(self, trust: Trust, *, renews: bool) -> None:
        """Renew the lease every third of its ttl, or only tell when it is lost."""
        with self._changed:
            self._due[trust] = now() + trust.ttl / 3 if renews else None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="dblock-heartbeat", daemon=True
                )
                self._thread.start()
            elif self._time_of(trust) < self._wakes:
                self._changed.notify()

    def forget(self, trust: Trust) -> None:
        """Stop renewing the lease.

        A renewal already in flight cannot undo a release; ``sql.fencing.RENEW`` checks the token.
        """
        with self._changed:
            self._due.pop(trust, None)
            if not self._due and self._lines:
                self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                for batch, trusts in self._batches().items():
                    self._beat(batch, trusts)
            except BaseException:  # a receiver's sys.exit(), say; the other leases go on
                logger.exception("What was called on the loss of a lease failed")

    def _wait(self) -> bool:
        """Wait until something is to be done; whether there is anything left to do at all."""
        with self._changed:
            idle = False
            while self._due or not (idle or self._lines):
                idle = not self._due
                at = now() + _MOMENT if idle else self._next()
                if (left := at - now()) <= 0:
                    return True
                if not self._lines:
                    left = min(left, _MOMENT)
                self._wakes = now() + left
                self._changed.wait(left)
            self._thread = None  # whoever comes next starts another
            lines, self._lines = self._lines, {}
        for line in lines.values():
            line.close()
        return False

    def _next(self) -> float:
        return min(map(self._time_of, self._due))

    def _time_of(self, trust: Trust) -> float:
        """When the lease is to be looked at."""
        due = self._due[trust]
        end = now() + trust.remaining
        return end if due is None else min(due, end)

    def _batches(self) -> dict[Batch, list[Trust]]:
        """Return the leases to renew, by database, schema and size of ttl.

        One that is due takes along all that soon will be, so that they keep step. Those that are
        lost, and those that nobody can give back any more, are told so instead.
        """
        with self._changed:
            trusts = dict(self._due)
        batches: dict[Batch, list[Trust]] = defaultdict(list)
        urgent: set[Batch] = set()
        for trust, due in trusts.items():
            if trust.reason is not None:  # its looking is what tells
                self.forget(trust)
            elif due is not None and due - now() <= trust.ttl / 6:
                if reason := trust.left_behind():
                    self.forget(trust)
                    trust.lose(reason)
                    continue
                batch = _batch_of(trust)
                batches[batch].append(trust)
                if due <= now():
                    urgent.add(batch)
        return {batch: batches[batch] for batch in batches if batch in urgent}

    def _beat(self, batch: Batch, trusts: list[Trust]) -> None:
        # What was given back since the batch was made has no time left, and must cost nobody any.
        trusts = [trust for trust in trusts if trust.remaining > 0]
        if not trusts:
            return
        started = now()
        interval = min(trust.ttl for trust in trusts) / 3
        # One lease whose time is up ends no beat of all others: it is told of its loss meanwhile.
        watch = Watch(trusts)
        line = self._lines.get(batch.alias)
        try:
            if line is None:
                line = self._lines[batch.alias] = Line(batch.alias)
            gone, skipped = line.renew(
                trusts,
                patience=min(interval, _LONGEST_SILENCE),
                schema=batch.schema,
                meanwhile=watch.look,
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, the leases still have time
            watch.look()
            logger.warning(
                "A heartbeat on %r failed, trying again: %s",
                batch.alias,
                error,
                extra={"kind": "fenced", "using": batch.alias, "error": error},
            )
            self._put_off(dict.fromkeys(trusts, self._soon(interval)))
            return
        for trust in gone:
            self.forget(trust)
            if not trust.ended:
                trust.lose(GONE)
        self._put_off({trust: started + trust.ttl / 3 for trust in trusts})
        # Somebody had the row for a moment, a waiter perhaps: a third of the ttl is not to be lost.
        self._put_off(dict.fromkeys(skipped, self._soon(interval)))

    @staticmethod
    def _soon(interval: float) -> float:
        pause = min(max(interval / 4, _SHORTEST_BREAK), _LONGEST_BREAK)
        return now() + random.uniform(pause / 2, pause)  # noqa: S311 - no secret

    def _put_off(self, times: dict[Trust, float]) -> None:
        with self._changed:
            for trust, due in times.items():
                if trust in self._due:
                    self._due[trust] = due

    def _leave_to_parent(self) -> None:
        """In a forked child: start without leases, and with new locks.

        No thread of the child could ever free a lock that a thread of the parent held.
        """
        _of_parents.append(self._lines)
        self._begin()


heartbeat = Heartbeat()

_of_parents: list[dict[str, Line]] = []
"""Kept, because closing them would end the parents' connections."""

after_fork_in_child(heartbeat._leave_to_parent)  # noqa: SLF001 - of this module
