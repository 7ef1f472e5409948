"""Waiting for a lease: ask, wait to be woken or for a while, ask again.

A short wait polls. A longer one takes a *ticket*: a place in the queue for the name. The waiter
marks the lease as awaited, and the release of a lease so marked notifies the first in the queue, in
its own commit (:mod:`django_dblock.core.notify`). So one release wakes one waiter, and an idle
waiter sends one statement in two seconds: it shows that it lives, and looks for a holder that died.

Where nobody listens (a pooler in transaction mode, a lost connection) waiters look more often: the
first in the queue after a sleep that is drawn between a shortest and three times the last one
(decorrelated jitter; M. Brooker, "Exponential Backoff And Jitter", 2015), and the others the more
rarely the further back they stand. No sleep is longer than what is left of the holder's lease.

With ``fair=True`` only the first in the queue is granted the lease. Without it, whoever asks when
it is free has it, and the queue only says who is woken. A waiter that dies is passed over when its
ticket expires.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from threading import Event
from typing import NamedTuple, TypeAlias

from django.db import Error

from django_dblock.core import notify
from django_dblock.core.clock import monotonic
from django_dblock.exceptions import LockTimeout
from django_dblock.fencing import store
from django_dblock.fencing.store import Grant, Place, Refusal, Wish

logger = logging.getLogger("django_dblock.fencing")

_SHORTEST, _LONGEST = 0.01, 0.5
"""Seconds between two looks of the first in the queue while nobody listens for it."""

_KNOCKS = 2
"""Times that a waiter asks again before it takes a ticket: most leases are held for a moment."""

_PATIENCE = 6.0
"""Seconds after which a waiter that shows no sign of life is passed over."""

_SIGN = _PATIENCE / 3
"""Seconds between two signs of life of a waiter: what one that can be woken sleeps."""

_SLICE = 0.05
"""Seconds between two looks at the caller's stop event."""


Acquire: TypeAlias = Callable[[Place, Wish, int | None], Grant | Refusal | None]
"""Take the lease if it is free: as :func:`django_dblock.fencing.store.acquire`."""


class Success(NamedTuple):
    """The lease, asked for at ``before`` on our clock, after ``waited`` seconds."""

    grant: Grant
    before: float
    waited: float


class Attempt:
    """One wait: ``while not (success := attempt.once()): attempt.pause()``, and ``close()``.

    Args:
        place: the lease to acquire.
        wish: the terms of the lease.
        timeout: seconds until LockTimeout; None waits indefinitely.
        acquire: sends the statement that takes the lease; by default `store.acquire`.
        queue_slot: the slot that this waiter's ticket carries.
        is_woken: whether every release of what is waited for notifies the queue; by default what
            `store.acquire` takes.

    Attributes:
        place: what is waited for.
        delay: seconds to sleep before the next try; ``pause()`` does it, and can be woken.
        refusal: the latest answer of the table, if the lease was held.
    """

    def __init__(  # noqa: PLR0913 - what other primitives change is named
        self,
        place: Place,
        wish: Wish,
        timeout: float | None,
        *,
        acquire: Acquire | None = None,
        queue_slot: int = 0,
        is_woken: bool | None = None,
    ) -> None:
        self.place = place
        self.delay = _SHORTEST
        self.refusal: Refusal | None = None
        self._acquire = acquire
        self._queue_slot = queue_slot
        self._is_woken = acquire is None if is_woken is None else is_woken
        self._wish = wish
        self._timeout = timeout
        self._started = monotonic()
        self._raced = False
        self._knocks = 0
        self._ticket: store.Ticket | None = None
        self._shown = 0.0
        self._ahead = 0
        self._called = False
        self._subscription: notify.Subscription | None = None

    def once(self) -> Success | None:
        """Try once.

        Raises:
            LockTimeout: the time is up.
        """
        before = monotonic()
        answer = self._ask()
        waited = monotonic() - self._started
        if isinstance(answer, Grant):
            self._ticket = None  # it went with the grant
            return Success(answer, before, waited)
        self.refusal = answer
        if answer is None and not self._raced:
            self._raced = True  # it lost a race that can't be lost twice, but to a queue
            self.delay = 0.0
            return None
        left = None if self._timeout is None else self._timeout - waited
        if left is not None and left <= 0:
            raise self.time_is_up(waited)
        self._knocks += 1
        if self._ticket is None and (self._wish.in_turn or self._knocks > _KNOCKS):
            self._ticket = store.take_ticket(self.place, self._queue_slot, _PATIENCE)
            self.delay = 0.0  # what was released before the lease was marked, nobody will tell
            return None
        self._plan(answer, left)
        return None

    def pause(self, stop: Event | None = None) -> None:
        """Sleep until the next try, or until woken.

        Args:
            stop: ends the sleep within a moment when it is set.
        """
        ends = monotonic() + self.delay
        subscription = self._listen()
        while (left := ends - monotonic()) > 0:
            if stop is not None:
                if stop.is_set():
                    return
                left = min(left, _SLICE)
            if subscription is None:
                time.sleep(left)
            elif subscription.wait(left):
                self._called = True
                return

    async def apause(self) -> None:
        """Do what :meth:`pause` does, without blocking the event loop."""
        subscription = self._listen()
        if subscription is None:
            await asyncio.sleep(self.delay)
        else:
            self._called = await subscription.await_(self.delay)

    def close(self) -> None:
        """Leave the queue."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        if self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            # The ticket expires by itself, and what ended the wait is what the caller must see.
            try:
                store.drop_ticket(self.place, ticket)
            except Error as error:
                logger.warning(
                    "%s: a waiter keeps its place in the queue until it expires: %s",
                    self.place.name,
                    error,
                )

    def _listen(self) -> notify.Subscription | None:
        if self._subscription is None and self._ticket is not None and self._is_woken:
            self._subscription = notify.subscribe(self.place.using, self._ticket.topic)
        return self._subscription

    def _ask(self) -> Grant | Refusal | None:
        """Take the lease, or in the queue look first whether that has a chance."""
        acquire = self._acquire or store.acquire
        if self._ticket is None:
            return acquire(self.place, self._wish, None)
        if self._called:  # it is our turn, most likely
            self._called = False
            return acquire(self.place, self._wish, self._ticket.id)
        refusal = self._look(self._ticket)
        # Other primitives have more rows under a name, and their own idea of what is free.
        has_a_chance = (
            self._acquire is not None
            or refusal is None
            or (refusal.remaining <= 0 and not (self._wish.in_turn and self._ahead))
        )
        if not has_a_chance:
            return refusal
        return acquire(self.place, self._wish, self._ticket.id)

    def _look(self, ticket: store.Ticket) -> Refusal | None:
        """Look at the lease and the queue; show that we live, where that is due."""
        now = monotonic()
        signs = now - self._shown >= _SIGN * 0.9
        look = store.look(self.place, ticket, _PATIENCE if signs else None)
        if signs:
            self._shown = now
        if not look.queued:  # it was purged while we were frozen
            self._leave_topic()
            self._ticket = store.take_ticket(self.place, self._queue_slot, _PATIENCE)
        self._ahead = look.ahead
        return look.refusal

    def _leave_topic(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _plan(self, answer: Refusal | None, left: float | None) -> None:
        """Decide how long to sleep."""
        first = self._ahead == 0
        if self._subscription is not None and self._subscription.heard:
            self.delay = _SIGN * random.uniform(1.0, 1.1)  # noqa: S311 - no secret
        elif self._ticket is None or first:
            longest = min(_LONGEST, max(self.delay, _SHORTEST) * 3)
            self.delay = random.uniform(_SHORTEST, longest)  # noqa: S311
        else:
            longest = min(0.2 + 0.1 * self._ahead, _SIGN)
            self.delay = random.uniform(longest / 2, longest)  # noqa: S311
        if answer is not None:
            # Should the holder die, the first in the queue has its lease, and then the others.
            ends = max(answer.remaining, 0.0) + 0.25 * self._ahead
            self.delay = min(self.delay, max(ends, _SHORTEST))
        if left is not None:
            self.delay = min(self.delay, left)

    @property
    def is_endless(self) -> bool:
        """Whether there is no timeout."""
        return self._timeout is None

    def time_is_up(self, waited: float, *, note: str = "") -> LockTimeout:
        """Return the error that says who holds the lease."""
        answer = self.refusal
        holder = "somebody who was faster, or before us in the queue"
        if answer is not None and answer.remaining > 0:
            holder = f"{note}{answer.owner} (token {answer.token}, {answer.remaining:.1f} s left)"
        return LockTimeout(**self.place.facts, timeout=self._timeout, waited=waited, holder=holder)
