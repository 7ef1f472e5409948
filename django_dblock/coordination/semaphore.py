"""Semaphores: at most N holders at a time."""

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django_dblock.advisory.acquire import Request, lock, try_any
from django_dblock.advisory.lock import AdvisoryBlock
from django_dblock.coordination import slots
from django_dblock.coordination.slots import SlotGrant
from django_dblock.core.application_name import named
from django_dblock.core.clock import monotonic
from django_dblock.exceptions import LockTimeout
from django_dblock.fencing.acquire import Attempt, Demand, Success
from django_dblock.fencing.deadline import Trust
from django_dblock.fencing.lease import Lease
from django_dblock.fencing.lock import fenced_lock
from django_dblock.fencing.store import Grant, Place
from django_dblock.keys import KeyPart, is_argument

if TYPE_CHECKING:
    from django_dblock.core.simple_query import Rows

P = ParamSpec("P")
R = TypeVar("R")

_MOST_ADVISORY = 200


class Permit(Lease):
    """One grant of a :class:`fenced_semaphore`: a lease on one slot, or on several.

    The guarantees are those of a :class:`~django_dblock.Lease`. With several units, the permit is
    lost as soon as one of its slots is lost, and ``guard()`` checks each slot.

    Attributes:
        slot: the number of the first slot, from 0 to permits - 1.
        slots: the numbers of all slots, in ascending order.
    """

    fences_rows = False

    def __init__(  # noqa: PLR0913 - as Lease
        self,
        place: Place,
        success: Success,
        *,
        ttl: float,
        hold_at_least: float,
        metadata: dict[str, Any],
        on_lost: Callable[[Lease], object] | None,
    ) -> None:
        grant = success.grant
        assert isinstance(grant, SlotGrant)  # noqa: S101 - the semaphore asks for nothing else
        first, *others = grant.slots
        self.slot = first.slot
        self.slots = tuple(slot.slot for slot in grant.slots)
        super().__init__(
            replace(place, slot=first.slot),
            success,
            ttl=ttl,
            hold_at_least=hold_at_least,
            metadata=metadata,
            on_lost=on_lost,
        )
        self._others = tuple(
            Trust(
                replace(place, slot=slot.slot),
                Grant(slot.token, slot.expires_at),
                ttl=ttl,
                before=success.before,
                when_lost=self.trust.lose,
            )
            for slot in others
        )

    @property
    def trusts(self) -> tuple[Trust, ...]:
        """This process's trust in the lease on each slot, in the order of ``slots``."""
        return (self.trust, *self._others)

    @property
    def remaining(self) -> float:
        """Seconds for which every slot can be trusted without another renewal."""
        return min(trust.remaining for trust in self.trusts)

    @property
    def lost(self) -> bool:
        """Whether one of the slots was lost before the permit was released."""
        for trust in self._others:
            if trust.reason is not None:
                self.trust.lose(trust.reason)
        return super().lost

    def guard(self, *, idle_timeout: float | None = None) -> AbstractContextManager[None]:
        """Open a transaction that commits only if every slot of the permit is still held.

        The guard sends one statement for each slot; otherwise it works as
        :meth:`django_dblock.Lease.guard`. At most ``permits`` units commit under their guards at a
        time.

        Args:
            idle_timeout: as in :meth:`django_dblock.Lease.guard`.

        Raises:
            LockLost: one of the slots is no longer held; nothing was written.
            ValueError: ``idle_timeout`` is not a number of seconds above 0.
        """
        if not self._others:
            return super().guard(idle_timeout=idle_timeout)
        return self._guard_all(idle_timeout)

    @contextmanager
    def _guard_all(self, idle_timeout: float | None) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().guard(idle_timeout=idle_timeout))
            for trust in self._others:
                stack.enter_context(self._guarded(trust, idle_timeout))
            yield

    def _release_row(self, *, was_lost: bool) -> bool:
        leases = [slots.identity(trust) for trust in self.trusts]
        ours = slots.give_back(
            self._place, leases, hold_at_least=self._hold_at_least, was_lost=was_lost
        )
        return len(ours) == len(leases)


class fenced_semaphore(fenced_lock):  # noqa: N801 - context managers are lower-case nouns
    """Let at most ``permits`` holders in at a time, across all processes, for long work.

    Entering takes a *permit*: a lease on one of the slots 0 … permits - 1, with an expiry and a
    fencing token of its own. A heartbeat renews the permit until the block is left. If this process
    dies or freezes, its permit expires after ``ttl`` and the slot is free again. Each permit is a
    row, and there is no counter that a crash or a double release could make wrong.

    Guaranteed: at most ``permits`` unexpired permits exist at any time. At most ``permits`` units
    commit under ``permit.guard()`` at a time, even if holders were frozen: the permit is checked
    inside the transaction that commits.

    Not guaranteed: that unguarded work stops when its permit is lost, see
    :class:`~django_dblock.fenced_lock`. The limit is an argument of the call: while two versions of
    your program run with different limits, at most the larger number of permits is held. After you
    lower the limit, permits on higher slots run to their end and are not granted again.

    A release wakes the waiters at the head of the queue whose units fit into the free permits; a
    waiter that needs more keeps those behind it asleep. Besides, each waiter tries again every two
    seconds, so a lost wake-up delays a waiter by at most two seconds.

    ``async with`` and async functions work as well. As a decorator, a callable among the key's
    parts is called with the call's arguments.

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`. The semaphore is independent of a
            ``fenced_lock`` on the same key.
        permits: the limit, 1 to 10,000.
        ttl: seconds after which an unrenewed permit expires.
        units: the number of permits that this holder needs; one statement takes all or none.
        timeout: seconds to wait; 0 (the default) does not wait, None waits indefinitely.
        heartbeat: whether the permit is renewed every third of the ttl.
        hold_at_least: seconds since the grant for which the slot stays taken, even if the permit is
            released earlier, or if its holder dies; see ``fenced_lock``.
        lock_delay: seconds for which a slot stays taken after its permit *expired* unreleased.
        on_lost: called once with the permit when the permit is lost; see ``fenced_lock``.
        using: the database alias of the lock table, as in ``fenced_lock``.
        fair: wait in a queue, first come, first served among the waiters with ``fair=True``: with k
            slots free, the first waiters whose units fit into k may take them.
        metadata: a JSON object that ``dblock list``, the monitor and the admin show.

    Raises:
        LockTimeout: on entering, fewer than ``units`` permits were free until the timeout.
        OpenTransaction: on entering, a transaction was open: the permit would be invisible until
            the commit, and lost after a rollback. Or a transaction was open on leaving.
        LockLost: on leaving, the permit was lost before the block ended.
        NotReplicated: on entering, no synchronous standby confirmed the grant.
        StandbyDatabase, UnsupportedDatabase, NotSupportedError, django.db.Error, RuntimeError: on
            entering or leaving, when :class:`~django_dblock.fenced_lock` raises them.
        TypeError, ValueError: a part of the key or an argument is not valid; before any SQL.
        TypeError: the decorated function returned something that runs later, such as a generator.

    Source: E. W. Dijkstra, "Cooperating sequential processes", 1965; the leases are those of
    :class:`~django_dblock.fenced_lock`.
    """

    def __init__(  # noqa: PLR0913 - as fenced_lock
        self,
        *key: KeyPart | Callable[..., KeyPart],
        permits: int,
        ttl: float,
        units: int = 1,
        timeout: float | None = 0,
        heartbeat: bool = True,
        hold_at_least: float = 0,
        lock_delay: float = 0,
        on_lost: Callable[[Any], object] | None = None,
        using: str | None = None,
        fair: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            *key,
            ttl=ttl,
            timeout=timeout,
            heartbeat=heartbeat,
            hold_at_least=hold_at_least,
            lock_delay=lock_delay,
            on_lost=on_lost,
            using=using,
            fair=fair,
            metadata=metadata,
        )
        _check_count("permits", permits, slots.LONGEST)
        _check_count("units", units, permits)
        self._permits = permits
        self._units = units

    if TYPE_CHECKING:  # fenced_lock's own: _lease() below makes the permit

        def __enter__(self) -> Permit: ...

        async def __aenter__(self) -> Permit: ...

    def _attempt(self) -> Attempt:
        place = slots.place_of(self._entered_key(), "semaphore", self._using)
        acquire = functools.partial(
            slots.acquire_slots, permits=self._permits, units=self._units, at_least=self._units
        )
        demand = Demand(acquire, units=self._units, capacity=self._permits, scope=self._permits)
        return Attempt(place, self._wish, self._timeout, demand)

    def _lease(self, place: Place, success: Success) -> Permit:
        return Permit(
            place,
            success,
            ttl=self._wish.ttl,
            hold_at_least=self._hold_at_least,
            metadata=self._metadata,
            on_lost=self._on_lost,
        )


def _check_count(argument: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be an int, not {type(value).__name__}.")
    if not 1 <= value <= most:
        raise ValueError(f"{argument}={value} is not a number from 1 to {most}.")


class HeldPermit:
    """The permit that a block of :class:`advisory_semaphore` has taken; a record of that moment.

    Attributes:
        key: the key's parts, as given.
        slot: the number of the permit, from 0 to permits - 1.
        using: the database alias.
        waited: seconds spent waiting; 0.0 if a permit was free.
    """

    def __init__(self, key: tuple[Any, ...], slot: int, using: str, waited: float) -> None:
        self.key = key
        self.slot = slot
        self.using = using
        self.waited = waited

    def __repr__(self) -> str:
        return f"<HeldPermit {self.key!r} slot={self.slot}>"


class advisory_semaphore(AdvisoryBlock[HeldPermit]):  # noqa: N801 - context managers are lower-case nouns
    """Let at most ``permits`` transactions into the block at a time, per key.

    The transaction-scoped counterpart of :class:`fenced_semaphore`: permit *n* is the advisory lock
    on ``(*key, "permit", n)``. In autocommit, entering opens ``transaction.atomic``, and its COMMIT
    or ROLLBACK frees the permit. Inside an open transaction the block joins that transaction: the
    permit is freed when the *outer* transaction ends.

    Guaranteed: at most ``permits`` transactions are in the block at a time, and each *commits*
    while it holds its permit: the permit belongs to the transaction that commits your work. A
    permit is freed when its process or connection dies.

    Not guaranteed: any order among waiters. If all permits are taken, a waiter waits in the
    server's queue for *one* permit, chosen at random. So a later waiter may be served first, and a
    waiter may wait although another permit has become free. A transaction that enters twice may
    hold one permit or two.

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`.
        permits: the limit, 1 to 200.
        timeout: seconds to wait, ``DBLOCK_ADVISORY_TIMEOUT`` (10) by default; 0 does not wait, None
            waits as long as the server's ``lock_timeout`` allows.
        using: the database alias, as in ``advisory_lock``.

    Raises:
        LockTimeout: no permit was acquired until the timeout. The caller's transaction is usable.
        LockDeadlock, LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: raised
            when ``advisory_lock`` raises them.
        TypeError, ValueError: a part of the key or an argument is not valid; before any SQL.
        TransactionManagementError: on leaving: the block was entered on another connection.

    Source: PostgreSQL manual, 13.3.5 "Advisory Locks".
    """

    _kind = "advisory_semaphore"
    _names_holder = False  # there are several

    def __init__(
        self,
        *key: KeyPart | Callable[..., KeyPart],
        permits: int,
        timeout: float | EllipsisType | None = ...,
        using: str | None = None,
    ) -> None:
        def for_call(*args: Any, **kwargs: Any) -> AdvisoryBlock[HeldPermit]:
            parts = (part(*args, **kwargs) if is_argument(part) else part for part in key)
            return advisory_semaphore(*parts, permits=permits, timeout=timeout, using=using)

        _check_count("permits", permits, _MOST_ADVISORY)
        take = functools.partial(_take_permit, permits)
        # Encoded here, so that a wrong part fails where it is written.
        known = named(tuple("" if is_argument(part) else part for part in key))
        if any(map(is_argument, key)):
            super().__init__(None, for_call, False, take, timeout=timeout, using=using)  # noqa: FBT003 - not shared
        else:
            super().__init__((known,), None, False, take, timeout=timeout, using=using)  # noqa: FBT003


def _take_permit(
    permits: int,
    request: Request,
    timeout: float | None,
    _joined: bool,  # noqa: FBT001 - a try that fails must always leave the transaction usable
    _holders: "list[Rows]",
) -> tuple[HeldPermit, float]:
    started = monotonic()
    [key] = request.keys
    connection = request.connection
    order = random.sample(range(permits), permits)
    keys = tuple(named((*key.parts, "permit", slot)) for slot in order)
    found = try_any(Request.of(keys, shared=False, connection=connection))
    if found is not None:
        return HeldPermit(key.parts, order[found], connection.alias, 0.0), 0.0
    holders = f"{permits} transactions, which is its limit"
    waited = monotonic() - started
    if timeout is None or timeout > waited:
        left = None if timeout is None else timeout - waited
        one = Request.of(keys[:1], shared=False, connection=connection)
        try:
            lock(one, timeout=left, joined=True)
        except LockTimeout as error:
            waited = monotonic() - started
            raise LockTimeout(
                **request.facts, timeout=timeout, waited=waited, holder=holders
            ) from error
        waited = monotonic() - started
        return HeldPermit(key.parts, order[0], connection.alias, waited), waited
    raise LockTimeout(**request.facts, timeout=timeout, waited=waited, holder=holders)
