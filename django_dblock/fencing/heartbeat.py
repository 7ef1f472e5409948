"""The heartbeat: a daemon thread that renews every lease of this process, and notices losses.

Each database alias has a thread of its own, so that a silent server delays no renewal on another.
The thread starts with the first lease and ends with the last. A thread with a connection ends at
once, and closes the connection. A thread without a connection ends a moment later, because starting
a thread for each of many short leases would cost more than the leases themselves. A beat is one
statement that renews all leases of the alias that are due. A failed beat is repeated until the
leases expire. While the thread connects, a second thread notices losses. After a fork the child has
no heartbeat: the leases and the connections are the parent's, and the child neither uses nor closes
those connections.
"""

import logging
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import starmap
from math import ceil, frexp, inf
from typing import Any, NamedTuple

from psycopg import capabilities
from psycopg.pq import TransactionStatus

from django_dblock.core.connection import after_fork_in_child, bounded, dedicated, fetch, unwrapped
from django_dblock.fencing.deadline import GONE, Trust, now
from django_dblock.fencing.store import in_schema, renewal_parameters, unreplicated
from django_dblock.sql import fencing as sql

# One beat: renew many leases in one statement, on a connection of its own.


_LOOK = 0.05
"""Seconds between two looks at the clock while the server is silent."""

_CONNECT = 2
"""The shortest time the driver can be given for connecting, in seconds."""

_LONGEST_CANCEL = 1.0
"""Seconds to wait at most until the server has received a cancellation."""


class Outcome(NamedTuple):
    """The leases that one statement did not renew.

    Attributes:
        gone: leases that another holder was granted, or that were released.
        skipped: leases that are still held, but whose row another transaction had locked.
    """

    gone: list[Trust]
    skipped: list[Trust]


class Line:
    """The heartbeat's own connection to one database: never a caller's, and never from a pool."""

    # A caller's connection may be in a transaction, and a pool may have no connection left.

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
        """Renew the leases; return the leases that were not renewed.

        Args:
            trusts: the leases, all of this database and schema.
            patience: seconds to wait for the server.
            schema: the schema of the leases' rows, quoted.
            meanwhile: called repeatedly while the server is silent.

        Raises:
            TimeoutError: the server was silent for ``patience`` seconds, or no synchronous standby
                confirmed the renewal.
            Exception: the statement failed. Whether the leases were renewed is not known.
        """
        wanted = {(trust.place.name, trust.place.slot, trust.token): trust for trust in trusts}
        leases = [(trust.place, trust.token, trust.ttl) for trust in wanted.values()]
        ttls = {key: trust.ttl for key, trust in wanted.items()}
        outcome = Outcome([], [])
        try:
            self._connect(patience, meanwhile)
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
            self._cancel(min(patience / 4, _LONGEST_CANCEL))
            self.close()
            raise
        return outcome

    def close(self) -> None:
        """Close the heartbeat's connection; it reconnects on the next renewal."""
        self._wrapper.close()

    def _cancel(self, timeout: float) -> None:
        """Cancel the statement that the server still runs.

        Otherwise the statement's backend would stay, for example in the queue for a locked table,
        and each further beat would leave another backend.
        """
        driver = unwrapped(self._wrapper.connection)
        if driver is None or driver.pgconn.transaction_status != TransactionStatus.ACTIVE:
            return
        if capabilities.has_cancel_safe():  # an older libpq would wait without a limit
            with suppress(Exception):  # the error of the beat is raised
                driver.cancel_safe(timeout=timeout)

    def _connect(self, patience: float, meanwhile: Callable[[], object]) -> None:
        if self._wrapper.connection is None:
            self._options["connect_timeout"] = max(_CONNECT, ceil(patience))
            with _called_repeatedly(meanwhile):
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
def _called_repeatedly(look: Callable[[], object]) -> Iterator[None]:
    """Call a function again and again in another thread, while the block waits."""
    # Connecting takes seconds for each address of a server that is silent. A pooler without a free
    # connection even accepts the connection, and makes its first statement wait.
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_LOOK):
            try:
                look()
            except BaseException:  # such as sys.exit() in a receiver; look at the other leases
                logger.exception(_FAILED)

    with suppress(RuntimeError):  # no thread can be started: the beat is more important
        threading.Thread(target=run, name="dblock-heartbeat-connects", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _patience(given: Any, until: float, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Let the driver wait for the server until a deadline at most.

    If the driver is hidden in a proxy, its wait has no deadline.
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

_FAILED = "A receiver or on_lost of a lost lease failed"

_LONGEST_SILENCE = 5.0
"""Seconds to wait for the server at most, because leases with other ttls are due, too."""

_SHORTEST_BREAK, _LONGEST_BREAK = 0.05, 1.0
"""Seconds between a beat that failed and the next."""

_LONGEST_SLEEP = 5.0
"""Seconds between two looks at the clock: a wait does not count time while the machine sleeps."""

_MOMENT = 0.25
"""Seconds after which a thread ends that never had a lease to renew."""


class Batch(NamedTuple):
    """The leases that one statement renews: of one schema, and with similar ttls."""

    # A beat is abandoned after a third of its shortest ttl. If the sizes were mixed, one short
    # lease would end the beats of a thousand long leases, which take longer than that.

    schema: str
    size: int


def _batch_of(trust: Trust) -> Batch:
    _, exponent = frexp(trust.ttl)
    return Batch(trust.place.schema, exponent // 3)


class Watch:
    """The deadlines of a batch, watched while its beat waits for the server."""

    def __init__(self, trusts: list[Trust]) -> None:
        self._trusts = trusts
        self._next = min(trust.deadline for trust in trusts)

    def look(self) -> None:
        """Mark the leases whose deadline has passed as lost."""
        if now() < self._next:
            return
        self._trusts = [trust for trust in self._trusts if trust.reason is None]
        self._next = min((trust.deadline for trust in self._trusts), default=inf)


class Heartbeat:
    """The watched leases of one alias, when each of them is due, and the thread that renews them.

    Args:
        alias: the database alias.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._changed = threading.Condition()
        self._due: dict[Trust, float | None] = {}  # None: watched, but not renewed
        self._thread: threading.Thread | None = None
        self._line: Line | None = None
        self._wakes = 0.0

    def watch(self, trust: Trust, *, renews: bool) -> None:
        """Renew the lease every third of its ttl; without ``renews``, only notice its loss."""
        with self._changed:
            self._due[trust] = now() + trust.ttl / 3 if renews else None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="dblock-heartbeat", daemon=True
                )
                self._thread.start()
            elif self._time_of(trust, self._due[trust]) < self._wakes:
                self._changed.notify()

    def forget(self, trust: Trust) -> None:
        """Stop renewing the lease.

        A renewal already in flight cannot undo a release; ``sql.fencing.RENEW`` checks the token.
        """
        with self._changed:
            self._due.pop(trust, None)
            if not self._due and self._line:
                self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                for batch, trusts in self._batches().items():
                    self._beat(batch, trusts)
            except BaseException:  # such as sys.exit() in a receiver; renew the other leases
                logger.exception(_FAILED)

    def _wait(self) -> bool:
        """Wait until a lease is due; return False if no lease is left and the thread can end."""
        with self._changed:
            idle = False
            while self._due or not (idle or self._line):
                idle = not self._due
                at = now() + _MOMENT if idle else self._next()
                if (left := at - now()) <= 0:
                    return True
                left = min(left, _LONGEST_SLEEP if self._line else _MOMENT)
                self._wakes = now() + left
                self._changed.wait(left)
            self._thread = None  # the next lease starts another thread
            line, self._line = self._line, None
        if line is not None:
            line.close()
        return False

    def _next(self) -> float:
        # Of a copy, because garbage collection may release a lease meanwhile.
        return min(starmap(self._time_of, self._due.copy().items()), default=now())

    @staticmethod
    def _time_of(trust: Trust, due: float | None) -> float:
        """Return when the lease is due, or when its trust ends, whichever is earlier."""
        end = now() + trust.remaining
        return end if due is None else min(due, end)

    def _batches(self) -> dict[Batch, list[Trust]]:
        """Return the leases to renew, by schema and size of ttl.

        A lease that is due takes along all leases that are due soon, so that they are renewed
        together later, too. Leases that are lost, and leases that no code can release any more, are
        marked as lost instead of being renewed.
        """
        with self._changed:
            trusts = dict(self._due)
        batches: dict[Batch, list[Trust]] = defaultdict(list)
        urgent: set[Batch] = set()
        for trust, due in trusts.items():
            if trust.reason is not None:  # reading ``reason`` has called when_lost
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
        # A lease that was released since the batch was made must not shorten the beat of the
        # others.
        trusts = [trust for trust in trusts if trust.remaining > 0]
        if not trusts:
            return
        started = now()
        interval = min(trust.ttl for trust in trusts) / 3
        # A lease that expires during the beat is marked as lost; the beat of the others goes on.
        watch = Watch(trusts)
        try:
            line = self._line = self._line or Line(self._alias)
            gone, skipped = line.renew(
                trusts,
                patience=min(interval, _LONGEST_SILENCE),
                schema=batch.schema,
                meanwhile=watch.look,
            )
        except Exception as error:  # noqa: BLE001 - after any error, the leases can still be renewed
            watch.look()
            logger.warning(
                "A heartbeat on %r failed, trying again: %s",
                self._alias,
                error,
                extra={"kind": "fenced", "using": self._alias, "error": error},
            )
            self._put_off(dict.fromkeys(trusts, self._soon(interval)))
            return
        for trust in gone:
            self.forget(trust)
            if not trust.ended:
                trust.lose(GONE)
        self._put_off({trust: started + trust.ttl / 3 for trust in trusts})
        # A waiter, perhaps, had locked the row for a moment. Try again soon, not at the next beat.
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


class Heartbeats:
    """The heartbeats of this process, one for each database alias."""

    def __init__(self) -> None:
        self._by_alias: dict[str, Heartbeat] = {}

    def of(self, alias: str) -> Heartbeat:
        """Return the heartbeat of an alias."""
        found = self._by_alias.get(alias)
        return found or self._by_alias.setdefault(alias, Heartbeat(alias))

    def watch(self, trust: Trust, *, renews: bool) -> None:
        """Renew the lease every third of its ttl; without ``renews``, only notice its loss."""
        self.of(trust.place.using).watch(trust, renews=renews)

    def forget(self, trust: Trust) -> None:
        """Stop renewing the lease, as :meth:`Heartbeat.forget` does."""
        self.of(trust.place.using).forget(trust)

    def _leave_to_parent(self) -> None:
        """Start again in a forked child, without leases and with new mutexes.

        No thread of the child could ever free a mutex that a thread of the parent held.
        """
        _of_parents.append(self._by_alias)
        self._by_alias = {}


heartbeat = Heartbeats()

_of_parents: list[dict[str, Heartbeat]] = []
"""The parents' heartbeats; garbage collection would close the connections of the parents."""

after_fork_in_child(heartbeat._leave_to_parent)  # noqa: SLF001 - of this module
