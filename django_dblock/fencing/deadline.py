"""The time for which this process may trust a lease, by a clock that can't be set.

The server counts the ttl from the moment when it ran the statement. This process counts the ttl
from *before* it sent the statement, so the process's deadline comes before the lease's expiry,
however long the response took. The margin covers that the two clocks need not run equally fast (NTP
corrects a clock by at most 0.05 %), and that acting takes a moment after looking at the clock.
"""

import os
import threading
from collections.abc import Callable
from datetime import datetime

from django_dblock.core.clock import monotonic
from django_dblock.fencing.store import Grant, Place

MARGIN = 0.05
"""The share of a ttl that is not trusted."""

EXPIRED = "no renewal was confirmed in time"
GONE = "another holder was granted the lease, or an operator released it"

now = monotonic
"""The clock of every deadline; it can't be set, stopped or frozen."""


class Trust:
    """What this process knows of one lease that it was granted; shared by its threads.

    The trust ends permanently in one of two ways: the lease was released, or the lease was lost.

    Attributes:
        place: the lease.
        token: the fencing token of the grant.
        ttl: seconds; the ttl of renewals.
        expires_at: the expiry by the server's clock, as of the latest grant or renewal.
        left_behind: returns why no code can release the lease any more, or None; the heartbeat
            calls it before a renewal.
    """

    def __init__(
        self,
        place: Place,
        grant: Grant,
        *,
        ttl: float,
        before: float,
        when_lost: Callable[[str], None],
    ) -> None:
        self.place = place
        self.token = grant.token
        self.ttl = ttl
        self.expires_at: datetime = grant.expires_at
        self.left_behind: Callable[[], str | None] = _never
        self._deadline = before + ttl * (1 - MARGIN)
        self._when_lost = when_lost
        self._reason: str | None = None
        self._ended = False
        self._pid = os.getpid()
        self._mutex = threading.RLock()  # garbage collection may release the lease meanwhile

    @property
    def deadline(self) -> float:
        """When the trust ends by this process's clock unless the lease is renewed or released."""
        return self._deadline

    @property
    def remaining(self) -> float:
        """Seconds for which the lease can still be trusted; 0 if it was released or lost."""
        if self._ended or self._reason is not None or self.foreign:
            return 0.0
        return max(0.0, self._deadline - now())

    @property
    def reason(self) -> str | None:
        """Why the lease is lost; None if it is not. Reads the clock; sends nothing."""
        if self._reason is None and not self._ended:
            if self.foreign:
                return "it belongs to the process that this one was forked from"
            if now() >= self._deadline:
                self.lose(EXPIRED)
        return self._reason

    @property
    def ended(self) -> bool:
        """Whether the lease was released."""
        return self._ended

    @property
    def foreign(self) -> bool:
        """Whether this process was forked from the process that holds the lease."""
        return os.getpid() != self._pid

    def extend(self, before: float, ttl: float, expires_at: datetime) -> None:
        """Extend the trust after a renewal that was sent at ``before``.

        A result that arrives after the lease was lost changes nothing, because other code may have
        acted on the loss.
        """
        if self.reason is None:
            with self._mutex:
                # Results may overtake each other, and the server never moves an expiry back.
                self._deadline = max(self._deadline, before + ttl * (1 - MARGIN))
                self.expires_at = max(self.expires_at, expires_at)

    def lose(self, reason: str) -> None:
        """Record that the lease is lost, and call ``when_lost`` once."""
        with self._mutex:
            if self._reason is not None:
                return
            self._reason = reason
        self._when_lost(reason)

    def end(self) -> None:
        """Record that the lease was released."""
        with self._mutex:
            self._ended = True


def _never() -> None:
    """Return None: a lease that was not entered as a block is never left behind."""
