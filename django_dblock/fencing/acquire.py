"""Waiting for a lease: try, sleep until woken or for a while, try again.

A short wait polls. For a longer wait the waiter takes a *ticket*: a place in the queue for the
name. The waiter marks the lease as awaited, and the release of a marked lease notifies the first
waiter in the queue, in the release's own commit (:mod:`django_dblock.core.notify`). So one release
wakes one waiter. An idle waiter sends one statement every two seconds, which shows that the waiter
lives, and finds a holder that died.

Without a listener (a pooler in transaction mode, a lost connection) waiters look more often. The
first waiter in the queue sleeps for a random time between a shortest sleep and three times its last
sleep (decorrelated jitter; M. Brooker, "Exponential Backoff And Jitter", 2015). The other waiters
look less often the further back they are. No sleep is longer than the rest of the holder's lease.

With ``fair=True`` only the first waiter in the queue is granted the lease. Otherwise any process
that tries while the lease is free gets the lease, and the queue only decides which waiter is woken.
A waiter that died is passed over when its ticket expires.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from math import inf
from threading import Event
from typing import NamedTuple, TypeAlias

from django_dblock.core import notify
from django_dblock.core.clock import monotonic
from django_dblock.exceptions import LockTimeout
from django_dblock.fencing import store
from django_dblock.fencing.store import Grant, Look, Place, Refusal, Wish

logger = logging.getLogger("django_dblock.fencing")

_SHORTEST, _LONGEST = 0.01, 0.5
"""Seconds between two looks of the first waiter in the queue, without a listener."""

_KNOCKS = 2
"""Attempts before a waiter takes a ticket, because most leases are held for a moment only."""

_PATIENCE = 6.0
"""Seconds after which a waiter that shows no sign of life is passed over."""

_SIGN = _PATIENCE / 3
"""Seconds between two signs of life of a waiter; the sleep of a waiter that can be woken."""

_SLICE = 0.05
"""Seconds between two looks at the caller's stop event."""


Acquire: TypeAlias = Callable[[Place, Wish, int | None], Grant | Refusal | None]
"""Takes the lease if it is free, as :func:`django_dblock.fencing.store.acquire` does."""

LookAt: TypeAlias = Callable[[Place, store.Ticket, float | None], Look]
"""Reads the lease and the queue, as :func:`django_dblock.fencing.store.look` does."""


class Demand(NamedTuple):
    """The units that a waiter needs. By default: the one lease of the name.

    A try can succeed if the `units` fit into the `capacity` that the held slots leave, and with
    ``in_turn`` also the waiters that come before.

    Attributes:
        acquire: sends the statement that acquires the lease; by default `store.acquire`.
        look: sends the statement that reads the lease and the queue; by default `store.look`.
        units: the units that this waiter needs; its ticket has the slot ``1 - units``.
        capacity: the number of units of the name.
        scope: slots below this number count as held.
        least: the units that an earlier ticket counts for at least.
    """

    acquire: Acquire | None = None
    look: LookAt | None = None
    units: int = 1
    capacity: int = 1
    scope: int = 1
    least: int = 0


_ONE_LEASE = Demand()


class Success(NamedTuple):
    """A granted lease; requested at ``before`` by the process clock, after ``waited`` seconds."""

    grant: Grant
    before: float
    waited: float


class Attempt:
    """One wait: ``while not (success := attempt.once()): attempt.pause()``, and ``close()``.

    Args:
        place: the lease to acquire.
        wish: the terms of the lease.
        timeout: seconds until LockTimeout; None waits indefinitely.
        demand: the units that the waiter needs; by default the one lease.

    Attributes:
        place: the lease that the attempt waits for.
        delay: seconds to sleep before the next try; ``pause()`` sleeps, and can be woken.
        refusal: the holder that the last try found; None if it found none.
    """

    def __init__(
        self,
        place: Place,
        wish: Wish,
        timeout: float | None,
        demand: Demand = _ONE_LEASE,
    ) -> None:
        self.place = place
        self.delay = _SHORTEST
        self.refusal: Refusal | None = None
        self._demand = demand
        self._acquire: Acquire = demand.acquire or store.acquire
        self._wish = wish
        self._timeout = timeout
        self._started = monotonic()
        self._raced = False
        self._knocks = 0
        self._ticket: store.Ticket | None = None
        self._shown = 0.0
        self._ahead = 0
        self._called = False
        self._came_in_vain = False
        self._nap = _SHORTEST
        self._subscription: notify.Subscription | None = None

    def once(self) -> Success | None:
        """Try once; return None if the lease was not granted.

        Raises:
            LockTimeout: the timeout has passed.
        """
        before = monotonic()
        answer = self._ask()
        waited = monotonic() - self._started
        if isinstance(answer, Grant):
            self._ticket = None  # the grant's statement has deleted the ticket
            return Success(answer, before, waited)
        self.refusal = answer
        if answer is None and not self._raced:
            # A race for a new row can be lost only once, except to a queue.
            self._raced = True
            self.delay = 0.0
            return None
        left = None if self._timeout is None else self._timeout - waited
        if left is not None and left <= 0:
            raise self.time_is_up(waited)
        self._knocks += 1
        if self._ticket is None and (self._wish.in_turn or self._knocks > _KNOCKS):
            self._queue_up()
            self.delay = 0.0  # a release before the lease was marked has notified nobody
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
        """Sleep as :meth:`pause` does, without blocking the event loop."""
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
            # The ticket expires by itself, and the caller must see the error that ended the wait.
            try:
                store.drop_ticket(self.place, ticket)
            except store.FAILURES as error:
                logger.warning(
                    "%s: a waiter keeps its place in the queue until it expires: %s",
                    self.place.name,
                    error,
                )

    def _listen(self) -> notify.Subscription | None:
        if self._subscription is None and self._ticket is not None:
            self._subscription = notify.subscribe(self.place.using, self._ticket.topic)
        return self._subscription

    def _ask(self) -> Grant | Refusal | None:
        """Try to take the lease; with a ticket, first look whether it can be granted."""
        self._came_in_vain = False
        if self._ticket is None:
            return self._acquire(self.place, self._wish, None)
        if self._called:  # this waiter was woken, so its turn has probably come
            self._called = False
            answer = self._acquire(self.place, self._wish, self._ticket.id)
            # One of several rows may have been skipped because another transaction had locked it.
            self._came_in_vain = self._demand is not _ONE_LEASE
            return answer
        look = self._look(self._ticket)
        before = look.ahead if self._wish.in_turn else 0
        has_a_chance = look.held + before + self._demand.units <= self._demand.capacity
        if look.refusal is not None and not has_a_chance:
            return look.refusal
        return self._acquire(self.place, self._wish, self._ticket.id)

    def _look(self, ticket: store.Ticket) -> Look:
        """Return the holder, if any; note the place in the queue; send a sign of life if due."""
        now = monotonic()
        signs = now - self._shown >= _SIGN * 0.9
        patience = _PATIENCE if signs else None
        demand = self._demand
        if demand.look is not None:
            look = demand.look(self.place, ticket, patience)
        else:
            look = store.look(self.place, ticket, patience, scope=demand.scope, least=demand.least)
        if signs:
            self._shown = now
        if not look.queued:  # the ticket expired while this process was frozen
            self._leave_topic()
            self._queue_up()
        self._ahead = look.ahead
        return look

    def _queue_up(self) -> None:
        self._ticket = store.take_ticket(self.place, 1 - self._demand.units, _PATIENCE)

    def _leave_topic(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _plan(self, answer: Refusal | None, left: float | None) -> None:
        """Set ``delay``, the seconds to sleep before the next try."""
        heard = self._subscription is not None and self._subscription.heard
        # The lease is over, and a transaction that is still open has its row: mostly the last
        # holder's guard. Its end notifies nobody, so the first waiter looks, as without a listener.
        is_over = answer is not None and answer.remaining <= 0 and self._ahead == 0
        soon = answer is None or is_over or self._came_in_vain
        if heard and not soon:
            self._nap = _SHORTEST
            self.delay = _SIGN * random.uniform(1.0, 1.1)  # noqa: S311 - no secret
        elif self._ticket is None or self._ahead == 0 or soon:
            longest = min(_LONGEST, self._nap * 3)
            self.delay = self._nap = random.uniform(_SHORTEST, longest)  # noqa: S311
        else:
            longest = min(0.2 + 0.1 * self._ahead, _SIGN)
            self.delay = random.uniform(longest / 2, longest)  # noqa: S311
        if answer is not None and not is_over:
            # If the holder dies, the first waiter gets the lease at its expiry; the others look
            # later.
            ends = max(answer.remaining, 0.0) + 0.25 * self._ahead
            self.delay = min(self.delay, max(ends, _SHORTEST))
        if left is not None:
            self.delay = min(self.delay, left)

    @property
    def is_endless(self) -> bool:
        """Whether there is no timeout."""
        return self._timeout is None

    def time_is_up(self, waited: float, *, note: str = "") -> LockTimeout:
        """Return the LockTimeout that names the holder."""
        answer = self.refusal
        holder = (
            "another holder that was faster, a waiter further ahead in the queue, or a transaction "
            "under the last holder's guard that is still open"
        )
        if answer is not None and answer.remaining == inf:
            holder = answer.owner  # a hold that does not expire
        elif answer is not None and answer.remaining > 0:
            holder = f"{note}{answer.owner} (token {answer.token}, {answer.remaining:.1f} s left)"
        return LockTimeout(**self.place.facts, timeout=self._timeout, waited=waited, holder=holder)
