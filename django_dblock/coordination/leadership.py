"""``leadership``: one leader at a time, with standbys that take over."""

import asyncio
import inspect
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from asgiref.sync import sync_to_async
from django.db import InterfaceError, OperationalError, connections

from django_dblock.coordination import slots
from django_dblock.core.application_name import named
from django_dblock.core.cancellation import to_its_end
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import fetch
from django_dblock.fencing.acquire import Attempt, Success
from django_dblock.fencing.async_lock import Stop
from django_dblock.fencing.lock import Entry, fenced_lock
from django_dblock.fencing.store import Place
from django_dblock.keys import KeyPart
from django_dblock.sql import coordination as sql

logger = logging.getLogger("django_dblock.coordination")

_SLICE = 0.1
"""Seconds between two looks at a stop event that can't be awaited."""

_SHORTEST_BREAK, _LONGEST_BREAK = 0.2, 5.0
"""Seconds between two tries while the database can't be reached."""


class StopEvent(Protocol):
    """An object that tells a leader to stop: ``threading.Event``, ``asyncio.Event``, …."""

    def is_set(self) -> bool:
        """Return whether to stop."""
        ...


Stopped: TypeAlias = StopEvent | Callable[[], bool] | None


class Term(slots.QuietLease):
    """One term of a leader: a lease, from the election until the term is released or lost.

    If the term is lost, ``with term:`` ends the block silently, so that the loop campaigns again.
    ``async with`` also cancels the block when the term is lost. Any other error propagates.
    """

    async def __aenter__(self) -> Self:
        self.stop_on_loss(Stop())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        stop = self.stop
        assert isinstance(stop, Stop)  # noqa: S101 - put there on entering
        stop.leave()
        cancelled = None
        try:
            await asyncio.sleep(0)  # a cancellation that is under way arrives here
        except asyncio.CancelledError as arrived:
            cancelled = arrived
        if stop.was_the_only_one() and (error is None or isinstance(error, asyncio.CancelledError)):
            return True
        if cancelled is not None:
            raise cancelled
        return self._is_own_loss(error)


class leadership:  # noqa: N801 - used like a function
    """Campaign for leadership; yield a term each time this process is elected.

    ::

        for term in leadership("scheduler", ttl=15, stop=event):
            with term:
                while not event.is_set():
                    term.check()
                    run_due_jobs(term)
                    event.wait(1)

    The loop waits until this process is elected, and yields a :class:`Term`, a lease that a
    heartbeat renews. When the body ends (at its end, by ``break``, ``return`` or an error), the
    term is released, and a standby is elected at once. After the body's end the loop campaigns
    again. ``with term:`` makes the loss of the term the end of the body.

    Guaranteed:

    - At any time at most one process has an unexpired term.
    - The token of each term is greater than the tokens of all earlier terms.
    - Once another leader is elected, no write of an earlier leader under ``term.guard()`` commits,
      even if the earlier leader does not know of its loss: the term is checked inside the
      transaction that commits. So the guarded commits of two terms never overlap. Elections in etcd
      or ZooKeeper can't guarantee that for your database.

    Not guaranteed:

    - That unguarded work stops when the term is lost. Call ``term.check()`` before each step.
    - That the loop ends while its body runs. When ``stop`` is set, the body has to return.

    ``async for`` works as well; ``break`` then releases the term when the event loop runs next.

    While the database can't be reached, a candidate tries again, with pauses of up to five seconds.

    Args:
        key: the parts of the key. The term is independent of a ``fenced_lock`` on the same key.
        ttl: seconds after which a leader that died or froze is replaced.
        stop: ends the loop when the event is set: a ``threading.Event``, an ``asyncio.Event``, or a
            callable that returns a bool. A campaign ends at once, the body when it returns.
        on_lost: called once with the term when the term is lost; see ``fenced_lock``.
        using: the database alias of the lock table, as in ``fenced_lock``.
        metadata: a JSON object that :func:`leader` returns.

    Raises:
        OpenTransaction, NotReplicated, StandbyDatabase, UnsupportedDatabase, NotSupportedError: in
            the loop, raised when ``fenced_lock`` raises them.
        TypeError, ValueError: a part of the key or an argument is not valid; before any SQL.

    Source: C. Gray and D. Cheriton, "Leases", SOSP 1989; the loop is that of Curator's
    LeaderSelector and of client-go's leaderelection, whose documentation disclaims fencing.
    """

    def __init__(
        self,
        *key: KeyPart,
        ttl: float,
        stop: Stopped = None,
        on_lost: Callable[[Any], object] | None = None,
        using: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if not (stop is None or callable(stop) or hasattr(stop, "is_set")):
            raise TypeError(
                f"stop must be an event or a callable, not {type(stop).__name__}: for example a "
                f"threading.Event."
            )
        self._stop = stop
        self._lock = TermLock(
            *key, ttl=ttl, timeout=None, on_lost=on_lost, using=using, metadata=metadata
        )

    def __iter__(self) -> Iterator[Term]:
        while (term := self._elect()) is not None:
            term.trust.left_behind = Entry(self, term).left_behind
            try:
                yield term
            finally:
                term.leave(failed=True)

    async def __aiter__(self) -> AsyncIterator[Term]:
        while (term := await self._aelect()) is not None:
            term.trust.left_behind = Entry(self, term).left_behind
            try:
                yield term
            finally:
                _, cancelled = await to_its_end(sync_to_async(term.leave)(failed=True))
                if cancelled is not None:  # else the loop would campaign again
                    raise cancelled

    @property
    def _is_stopped(self) -> bool:
        stop = self._stop
        if stop is None:
            return False
        return stop() if callable(stop) else stop.is_set()

    def _elect(self) -> Term | None:
        campaign = _Campaign(self._lock)
        term: Term | None = None
        try:
            try:
                while term is None and not self._is_stopped:
                    if (term := campaign.once()) is None:
                        campaign.pause(self._pause, self._stop)
            finally:
                campaign.close()
        except BaseException:
            if term is not None:
                term.leave(failed=True)
            raise
        return term

    def _pause(self, seconds: float) -> None:
        wait = getattr(self._stop, "wait", None)
        if self._stop is None:
            time.sleep(seconds)
        elif wait is not None and not inspect.iscoroutinefunction(wait):
            wait(seconds)
        else:
            ends = monotonic() + seconds
            while not self._is_stopped and (left := ends - monotonic()) > 0:
                time.sleep(min(left, _SLICE))

    async def _aelect(self) -> Term | None:
        campaign = _Campaign(self._lock)
        term: Term | None = None
        cancelled: asyncio.CancelledError | None = None
        try:
            while not self._is_stopped:
                term, cancelled = await to_its_end(sync_to_async(campaign.once)())
                if term is not None or cancelled is not None:
                    break
                await self._apause(campaign)
        finally:
            _, later = await to_its_end(sync_to_async(campaign.close)())
            if cancelled := later or cancelled:
                if term is not None:
                    await to_its_end(sync_to_async(term.leave)(failed=True))
                raise cancelled
        return term

    async def _apause(self, campaign: "_Campaign") -> None:
        ending: set[asyncio.Future[Any]] = {asyncio.ensure_future(campaign.asleep())}
        look = None if self._stop is None else _SLICE
        if isinstance(self._stop, asyncio.Event):
            ending.add(asyncio.ensure_future(self._stop.wait()))
            look = None
        try:
            ended: set[asyncio.Future[Any]] = set()
            while not (ended or self._is_stopped):
                ended, _ = await asyncio.wait(
                    ending, timeout=look, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in ending:
                task.cancel()


class TermLock(fenced_lock):
    """The lock of a leader: its leases are terms."""

    @property
    def _sender(self) -> type:
        return leadership

    def _attempt(self) -> Attempt:
        place = slots.place_of(self._entered_key(), "leader", self._using)
        return Attempt(place, self._wish, self._timeout)

    def _lease(self, place: Place, success: Success) -> Term:
        return Term(
            place,
            success,
            ttl=self._wish.ttl,
            hold_at_least=self._hold_at_least,
            metadata=self._metadata,
            on_lost=self._on_lost,
        )

    def once(self, attempt: Attempt) -> Term | None:
        """Try once to acquire the term; return None if another holder has the term."""
        term = self._once(attempt)
        assert term is None or isinstance(term, Term)  # noqa: S101 - made by _lease() above
        return term

    def attempt(self) -> Attempt:
        """Begin to wait for the term."""
        return self._attempt()


class _Campaign:
    """One wait for a term, which continues while the database can't be reached."""

    def __init__(self, lock: TermLock) -> None:
        self._lock = lock
        self._attempt = lock.attempt()
        self._failures = 0
        self.delay = 0.0

    def once(self) -> Term | None:
        try:
            term = self._lock.once(self._attempt)
        except (OperationalError, InterfaceError) as error:
            connection = connections[self._attempt.place.using]
            if connection.in_atomic_block:
                raise
            connection.close()  # the next try connects again
            self._failures += 1
            longest = min(_SHORTEST_BREAK * 2**self._failures, _LONGEST_BREAK)
            self.delay = random.uniform(_SHORTEST_BREAK, longest)  # noqa: S311 - no secret
            logger.warning(
                "An election of %s failed, trying again: %s", self._attempt.place.name, error
            )
            return None
        self._failures = 0
        self.delay = self._attempt.delay
        return term

    def pause(self, sleep: Callable[[float], None], stop: Stopped) -> None:
        """Sleep until the next try. While the database responds, a release wakes the candidate."""
        if self._failures == 0 and (stop is None or isinstance(stop, Event)):
            self._attempt.pause(stop)
        else:
            sleep(self.delay)

    async def asleep(self) -> None:
        """Pause as :meth:`pause` does, without blocking the event loop."""
        if self._failures == 0:
            await self._attempt.apause()
        else:
            await asyncio.sleep(self.delay)

    def close(self) -> None:
        self._attempt.close()


@dataclass(frozen=True, slots=True)
class Leader:
    """The current leader, by the database's clock.

    Attributes:
        token: the term's fencing token.
        owner: the leader's host, process and thread, as readable text.
        since: when the term began.
        expires_at: when the term ends, unless it is renewed.
        remaining: seconds until ``expires_at``.
        metadata: the metadata that the leader passed to :class:`leadership`.
    """

    token: int
    owner: str
    since: datetime
    expires_at: datetime
    remaining: float
    metadata: dict[str, Any]


def leader(*key: KeyPart, using: str | None = None) -> Leader | None:
    """Return the current leader, or None if there is no leader. One statement.

    The result may be outdated when you read the result. To act as the leader, be elected.

    Args:
        key: the parts of the key, as given to :class:`leadership`.
        using: the database alias of the lock table.

    Raises:
        TypeError, ValueError: a part of the key is not valid; before any SQL.
        UnsupportedDatabase: the database is not PostgreSQL.
    """
    place = slots.place_of(named(key), "leader", using)
    rows = fetch(connections[place.using], sql.HOLDER, {"name": place.name})
    if not rows:
        return None
    [(token, owner, since, expires_at, remaining, metadata)] = rows
    return Leader(token, owner, since, expires_at, remaining, json.loads(metadata))
