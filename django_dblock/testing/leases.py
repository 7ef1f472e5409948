"""Leases for tests: held by somebody else, and taken away."""

from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Any, Self

from django_dblock.coordination.leadership import leadership
from django_dblock.coordination.partitions import Share, partitions
from django_dblock.exceptions import LockLost
from django_dblock.fencing.lease import Lease
from django_dblock.fencing.lock import fenced_lock
from django_dblock.fencing.operations import force_release_grant
from django_dblock.inspect import fenced_leases
from django_dblock.testing.leaks import until


class hold_lease:  # noqa: N801 - as hold_lock, a context manager in lower case
    """Hold a lease as another task would, so that code under test finds it busy.

    ::

        with hold_lease(fenced_semaphore("openai", permits=3, ttl=30, units=3)) as busy:
            with self.assertRaises(LockTimeout):
                call_provider()

    It takes every block that holds leases: ``fenced_lock``, ``fenced_semaphore``, ``read()`` and
    ``write()`` of a ``fenced_rwlock``, ``partitions``, and ``leadership``, which is elected. It
    works in a ``TestCase``, too: the lease is then in the transaction of the test.

    Guaranteed: until the block ends or :meth:`release` is called, the lease is held, and code under
    test does not count as its holder: a read-write lock is busy for it, not a ``SelfDeadlock``.

    Not guaranteed: that other connections see the lease in a ``TestCase``; that a wait in the same
    thread ends. Nobody releases the lease meanwhile, so test with a timeout.

    Args:
        block: what to hold, with its key and options.

    Attributes:
        lease: what entering the block returned: a Lease, a Permit, a Term, or the Share of
            ``partitions``.

    Raises:
        LockTimeout: on entering, somebody else holds the lease. A leadership has no timeout: it
            campaigns until it is elected.
        OpenTransaction: on entering, the test has opened a transaction of its own.
        TypeError: ``block`` holds no lease: it is a key, or an ``advisory_lock``, for example.
        ValueError: on entering, the leadership's ``stop`` is set.
    """

    lease: Any

    def __init__(self, block: fenced_lock | partitions | leadership) -> None:
        # An advisory_lock would be held in the test's own transaction, where it is never busy.
        if not isinstance(block, (fenced_lock, partitions, leadership)):
            raise TypeError(
                f"hold_lease() takes a block that holds a lease, as in "
                f'hold_lease(fenced_lock("nightly", ttl=30)), not {type(block).__name__}. '
                f"For an advisory lock use hold_lock() with its key."
            )
        self._block = _Led(block) if isinstance(block, leadership) else block
        self._context = Context()
        self._held = False

    def __enter__(self) -> Self:
        """Acquire the lease. Entering twice acquires it once."""
        if not self._held:
            self.lease = self._context.run(self._block.__enter__)
            self._held = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Release the lease, if it was not taken away. Calling it again does nothing."""
        if self._held:
            self._held = False
            with suppress(LockLost):
                self._context.run(self._block.__exit__, None, None, None)

    def waiters(self) -> list[str]:
        """Return the owners that wait in turn for the lease, the first in front.

        A waiter without ``fair=True`` takes its place there after its third try.
        """
        if isinstance(self.lease, Share):
            return []
        place = self.lease.place
        found = fenced_leases(place.using, name=place.name)
        return [owner for lease in found for owner in lease.waiting]

    def until_waited_for(self, count: int = 1, *, within: float = 30.0) -> list[str]:
        """Return as soon as ``count`` others wait for the lease. Use it instead of ``sleep()``.

        Raises:
            AssertionError: fewer wait after ``within`` seconds.
        """
        found = until(self.waiters, lambda owners: len(owners) >= count, within)
        if len(found) < count:
            raise AssertionError(
                f"{self.lease!r}: after {within:g} s {len(found)} wait for it, not {count}."
            )
        return found


class _Led:
    """A leadership as a block: elected on entering, resigned on leaving."""

    def __init__(self, campaign: leadership) -> None:
        self._campaign = campaign
        self._terms: Any = None

    def __enter__(self) -> Lease:
        self._terms = iter(self._campaign)
        term: Lease | None = next(self._terms, None)
        if term is None:
            raise ValueError(
                "hold_lease() was given a leadership whose stop is set, so it can't be elected. "
                "Leave stop out."
            )
        return term

    def __exit__(self, *_: object) -> None:
        self._terms.close()


def take_away(lease: Lease, *, noticed: bool = False) -> None:
    """End a lease behind its holder's back, as its expiry or an operator would.

    Guaranteed: nothing that is written under ``lease.guard()`` commits from now on, and somebody
    else can be granted it.

    Args:
        lease: a lease of any kind: of a ``fenced_lock``, a permit with all its units, a reader or
            writer, a leader's term, a partition.
        noticed: whether the holder notices, as by a heartbeat: ``lease.lost`` is true,
            ``check()`` raises, and ``on_lost`` is called. Otherwise the next guard finds out.

    Raises:
        OpenTransaction: a transaction is open, besides that of ``TestCase``.
    """
    for trust in lease.trusts:
        place = trust.place
        force_release_grant(place.name, place.slot, trust.token, using=place.using)
        if noticed:
            trust.lose("a test has taken it away")
