"""Waiting for a lease: ask, sleep for a while, ask again.

The sleep is drawn between a shortest and three times the last one (decorrelated jitter; M. Brooker,
"Exponential Backoff And Jitter", 2015), so that waiters neither meet nor hammer, and it is never
longer than what is left of the holder's lease. A try that fails writes nothing.

In turn, a waiter takes a ticket after its first try, and the table grants only the first in the
queue. The first asks often, the others the more rarely the further back they stand. Who dies is
passed over when its ticket expires.
"""

import random
import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from django_dblock.exceptions import LockTimeout
from django_dblock.fencing import store
from django_dblock.fencing.deadline import now
from django_dblock.fencing.store import Grant, Place, Refusal, Wish
from django_dblock.sql import fencing as sql

_SHORTEST, _LONGEST = 0.01, 0.5
"""Seconds between two tries."""

_PATIENCE = 6.0
"""Seconds after which a waiter that shows no sign of life is passed over; thrice the least often
that it shows one."""


Acquire: TypeAlias = Callable[[Place, Wish, int | None], Grant | Refusal | None]
"""Take the lease if it is free: as :func:`django_dblock.fencing.store.acquire`."""


class Success(NamedTuple):
    """The lease, asked for at ``before`` on our clock, after ``waited`` seconds."""

    grant: Grant
    before: float
    waited: float


class Attempt:
    """One wait. The caller sleeps: ``while not (success := attempt.once()): sleep(delay)``.

    Args:
        place: the lease to acquire.
        wish: the terms of the lease.
        timeout: seconds until LockTimeout; None waits indefinitely.
        acquire: sends the statement that takes the lease; by default `store.acquire`.
        queue_slot: the slot that this waiter's ticket carries.

    Attributes:
        place: what is waited for.
        delay: seconds to sleep before the next try.
    """

    def __init__(
        self,
        place: Place,
        wish: Wish,
        timeout: float | None,
        *,
        acquire: Acquire | None = None,
        queue_slot: int = 0,
    ) -> None:
        self.place = place
        self._acquire = acquire or store.acquire
        self._queue_slot = queue_slot
        self._wish = wish
        self._timeout = timeout
        self._started = time.monotonic()
        self._ticket: int | None = None
        self._shown = 0.0
        self._raced = False
        self.delay = _SHORTEST

    def once(self) -> Success | None:
        """Try once.

        Raises:
            LockTimeout: the time is up.
        """
        before = now()
        answer = self._acquire(self.place, self._wish, self._ticket)
        waited = time.monotonic() - self._started
        if isinstance(answer, Grant):
            self._ticket = None  # it went with the grant
            return Success(answer, before, waited)
        if answer is None and not self._raced:
            self._raced = True  # it lost a race that can't be lost twice, but to a queue
            self.delay = 0.0
            return None
        left = None if self._timeout is None else self._timeout - waited
        if left is not None and left <= 0:
            raise self._time_is_up(answer, waited)
        if self._wish.in_turn:
            self._queue()
        self._plan(answer, left)
        return None

    def close(self) -> None:
        """Leave the queue."""
        if self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            store.run(self.place, "left", sql.DROP_TICKET, {"ticket": ticket})

    def _plan(self, answer: Refusal | None, left: float | None) -> None:
        longest = min(_LONGEST, max(self.delay, _SHORTEST) * 3)
        self.delay = random.uniform(_SHORTEST, longest)  # noqa: S311 - no secret
        if answer is not None:
            self.delay = min(self.delay, max(answer.remaining, _SHORTEST))
        if left is not None:
            self.delay = min(self.delay, left)

    def _queue(self) -> None:
        """Take a ticket, or show that its owner lives."""
        if self._ticket is not None and now() - self._shown < _PATIENCE / 3:
            return
        parameters = {
            "name": self.place.name,
            "slot": self._queue_slot,
            "owner": store.owner(),
            "patience": _PATIENCE,
            "ticket": self._ticket,
        }
        shown = now()
        rows = []
        if self._ticket is not None:
            rows = store.run(self.place, "queued for", sql.KEEP_TICKET, parameters)
        if not rows:  # none yet, or it was purged while we were frozen
            rows = store.run(self.place, "queued for", sql.TAKE_TICKET, parameters)
        [(self._ticket, _)] = rows
        self._shown = shown

    def _time_is_up(self, answer: Refusal | None, waited: float) -> LockTimeout:
        holder = "somebody who was faster, or before us in the queue"
        if answer is not None and answer.remaining > 0:
            holder = f"{answer.owner} (token {answer.token}, {answer.remaining:.1f} s left)"
        return LockTimeout(**self.place.facts, timeout=self._timeout, waited=waited, holder=holder)
