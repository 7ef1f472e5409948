"""How long this process may believe that it holds a lease, by a clock that nobody can set.

The server counts the ttl from when it ran the statement; we count it from *before* it was sent, so
our end comes first however long the answer took. The margin covers that the two clocks need not
run equally fast (NTP corrects a clock by at most 0.05 %) and that acting takes a moment after
looking at the clock.
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
GONE = "somebody else has it, or an operator released it"

now = monotonic
"""The clock of every deadline: nobody can set, stop or freeze it."""


class Trust:
    """What this process knows of one lease it was granted; shared by its threads.

    It ends in one of two ways, for good: given back, or lost.

    Attributes:
        place: which lease.
        token: the grant's.
        ttl: seconds; what renewals ask for.
        expires_at: by the server's clock, as of its latest answer.
        left_behind: says why nobody can give the lease back any more, or None; asked by the
            heartbeat before it renews.
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
        self._mutex = threading.Lock()

    @property
    def deadline(self) -> float:
        """When it ends, by our clock, unless it is renewed; given back or not."""
        return self._deadline

    @property
    def remaining(self) -> float:
        """Seconds left; 0 when it has ended."""
        if self._ended or self._reason is not None or self.foreign:
            return 0.0
        return max(0.0, self._deadline - now())

    @property
    def reason(self) -> str | None:
        """Why it is lost; None while it is not. Looks at the clock, and nowhere else."""
        if self._reason is None and not self._ended:
            if self.foreign:
                return "it belongs to the process that this one was forked from"
            if now() >= self._deadline:
                self.lose(EXPIRED)
        return self._reason

    @property
    def ended(self) -> bool:
        """Whether it was given back."""
        return self._ended

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that holds it."""
        return os.getpid() != self._pid

    def extend(self, before: float, ttl: float, expires_at: datetime) -> None:
        """Believe an answer to a renewal that was sent at ``before``.

        One that arrives after the end changes nothing: somebody may have acted on the loss.
        """
        if self.reason is None:
            with self._mutex:
                # Answers may overtake each other, and the server never takes time back.
                self._deadline = max(self._deadline, before + ttl * (1 - MARGIN))
                self.expires_at = max(self.expires_at, expires_at)

    def lose(self, reason: str) -> None:
        """Note that it is lost, and tell about it, once."""
        with self._mutex:
            if self._reason is not None:
                return
            self._reason = reason
        self._when_lost(reason)

    def end(self) -> None:
        """Note that it was given back."""
        with self._mutex:
            self._ended = True


def _never() -> None:
    """A lease that was not entered as a block."""
