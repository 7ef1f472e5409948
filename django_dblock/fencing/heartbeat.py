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
from collections.abc import Generator, Iterable
from math import ceil
from typing import Any

from django.db import connections

from django_dblock.core.connection import after_fork_in_child
from django_dblock.fencing.deadline import GONE, Trust, now
from django_dblock.fencing.store import renewal_parameters, unreplicated
from django_dblock.sql import fencing as sql

# One beat: renew many leases in one statement, on a connection of its own.


_LOOK = 0.05
"""Seconds between two looks at the clock while the server is silent."""

_CONNECT = 2
"""The shortest time the driver can be given for connecting, in seconds."""


class Line:
    """The heartbeat's own connection to one database: never a caller's, and none of a pool's.

    A caller's may be in the middle of a transaction, and a pool may have none left to give.
    """

    def __init__(self, alias: str) -> None:
        self._wrapper = connections[alias].copy()
        settings = self._wrapper.settings_dict
        settings["AUTOCOMMIT"] = True
        options = settings["OPTIONS"]
        options.pop("pool", None)
        options["application_name"] = f"{options.get('application_name', '')} heartbeat".strip()

    def renew(self, trusts: Iterable[Trust], *, patience: float) -> list[Trust]:
        """Renew the leases; return those of which the table knows nothing any more.

        Args:
            trusts: the leases, all of this database.
            patience: seconds; a server that is silent for longer has failed.

        Raises:
            Exception: it failed, for all of them; nobody knows what was done.
        """
        wanted = {(trust.place.name, trust.place.slot, trust.token): trust for trust in trusts}
        leases = [(trust.place, trust.token, trust.ttl) for trust in wanted.values()]
        ttls = {key: trust.ttl for key, trust in wanted.items()}
        gone = []
        try:
            self._connect(patience)
            before = now()
            for name, slot, token, expires_at, ours in self._ask(leases, before + patience):
                trust = wanted[name, slot, token]
                if expires_at is not None:
                    trust.extend(before, ttls[name, slot, token], expires_at)
                elif not ours:
                    gone.append(trust)
        except BaseException:
            self.close()
            raise
        return gone

    def close(self) -> None:
        """Hang up. The next use calls again."""
        self._wrapper.close()

    def _connect(self, patience: float) -> None:
        options = self._wrapper.settings_dict["OPTIONS"]
        options["connect_timeout"] = max(_CONNECT, ceil(patience))
        self._wrapper.ensure_connection()

    def _ask(self, leases: list[Any], until: float) -> list[Any]:
        driver = self._wrapper.connection
        plain_wait = type(driver).wait

        def wait(generator: Any, interval: float = _LOOK, **more: Any) -> Any:
            return plain_wait(driver, _until(generator, until), min(interval, _LOOK), **more)

        driver.wait = wait
        try:
            with unreplicated(driver) as warnings, self._wrapper.cursor() as cursor:
                cursor.execute(sql.RENEW, renewal_parameters(leases))
                rows: list[Any] = cursor.fetchall()
        finally:
            del driver.wait
        if warnings:
            raise TimeoutError(warnings[0])
        return rows


def _until(generator: Generator[Any, Any, Any], until: float) -> Generator[Any, Any, Any]:
    """Drive the driver's own generator, which waits for the server for ever, up to a time."""
    try:
        state = next(generator)
        while True:
            ready = yield state
            if not ready and now() > until:
                raise TimeoutError("The server is silent.")
            state = generator.send(ready)
    except StopIteration as done:
        return done.value


logger = logging.getLogger("django_dblock.fencing")

_LONGEST_SILENCE = 5.0
"""Seconds to wait for one answer, at most: leases of other databases want their beat, too."""

_SHORTEST_BREAK, _LONGEST_BREAK = 0.05, 1.0
"""Seconds between a beat that failed and the next."""

_MOMENT = 0.25
"""Seconds after which a thread that never had anything to renew has found out that it can end."""


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
        """Renew it no more. A renewal that is under way can't undo a release: see RENEW."""
        with self._changed:
            self._due.pop(trust, None)
            if not self._due and self._lines:
                self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                for alias, batch in self._batches().items():
                    self._beat(alias, batch)
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

    def _batches(self) -> dict[str, list[Trust]]:
        """Return the leases to renew, by database; those that are lost are told so instead.

        One that is due takes along all that soon will be, so that they keep step.
        """
        with self._changed:
            trusts = dict(self._due)
        batches: dict[str, list[Trust]] = defaultdict(list)
        urgent: set[str] = set()
        for trust, due in trusts.items():
            if trust.reason is not None:  # its looking is what tells
                self.forget(trust)
            elif due is not None and due - now() <= trust.ttl / 6:
                batches[trust.place.using].append(trust)
                if due <= now():
                    urgent.add(trust.place.using)
        return {alias: batches[alias] for alias in batches if alias in urgent}

    def _beat(self, alias: str, batch: list[Trust]) -> None:
        started = now()
        interval = min(trust.ttl for trust in batch) / 3
        patience = min(interval, _LONGEST_SILENCE, *(trust.remaining for trust in batch))
        line = self._lines.get(alias)
        try:
            if line is None:
                line = self._lines[alias] = Line(alias)
            gone = line.renew(batch, patience=patience)
        except Exception as error:  # noqa: BLE001 - whatever it was, the leases still have time
            logger.warning(
                "A heartbeat on %r failed, trying again: %s",
                alias,
                error,
                extra={"kind": "fenced", "using": alias, "error": error},
            )
            pause = min(max(interval / 4, _SHORTEST_BREAK), _LONGEST_BREAK)
            again = now() + random.uniform(pause / 2, pause)  # noqa: S311 - no secret
            self._put_off(dict.fromkeys(batch, again))
            return
        for trust in gone:
            self.forget(trust)
            if not trust.ended:
                trust.lose(GONE)
        self._put_off({trust: started + trust.ttl / 3 for trust in batch})

    def _put_off(self, times: dict[Trust, float]) -> None:
        with self._changed:
            for trust, due in times.items():
                if trust in self._due:
                    self._due[trust] = due

    def _leave_to_parent(self) -> None:
        """In a forked child: begin anew, with locks that no thread here could ever free."""
        _of_parents.append(self._lines)
        self._begin()


heartbeat = Heartbeat()

_of_parents: list[dict[str, Line]] = []
"""Kept, because closing them would end the parents' connections."""

after_fork_in_child(heartbeat._leave_to_parent)  # noqa: SLF001 - of this module
