"""``fenced_rwlock``: many readers or one writer."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.db import connections

from django_dblock.coordination import slots
from django_dblock.coordination.slots import SlotGrant
from django_dblock.core.application_name import named
from django_dblock.exceptions import SelfDeadlock
from django_dblock.fencing import store
from django_dblock.fencing.acquire import Attempt, Demand, Success
from django_dblock.fencing.deadline import GONE, now
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.lease import Lease, is_ttl, not_a_ttl
from django_dblock.fencing.lock import Entry, fenced_lock
from django_dblock.fencing.store import Place, Refusal, Wish
from django_dblock.keys import KeyPart
from django_dblock.sql import rwlock as sql

# The leases of read-write locks that the current thread or task has entered.
_holding: ContextVar[tuple["ReadLease | WriteLease", ...]] = ContextVar(
    "dblock_holding", default=()
)


class _TurnLease(Lease):
    """A lease whose release wakes the next waiters: several readers, or one writer."""

    def _release_row(self, *, was_lost: bool) -> bool:
        parameters = {
            "name": self._place.name,
            "slot": self._place.slot,
            "token": self.token,
            "hold_at_least": self._hold_at_least,
            "was_lost": was_lost,
            "ticket": None,
        }
        return bool(store.run_again(self._place, "released", sql.RELEASE_TURN, parameters))


class ReadLease(_TurnLease):
    """The lease of one reader. Others may read, too; nobody is granted the write lock meanwhile.

    Its token is greater than the token of every earlier writer. The tokens of readers can't be
    compared with each other, so ``save_fenced()`` refuses the lease.
    """

    fences_rows = False


class WriteLease(_TurnLease):
    """The lease of the writer. Its token is greater than every token granted before it."""

    def downgrade(self, *, ttl: float | None = None) -> "_Downgrade":
        """Return a block that reads; no other writer is granted the lock in between.

        ::

            with catalogue.write(ttl=30) as writing:
                rebuild()
                with writing.downgrade() as reading:  # from here on, others read, too
                    publish()

        Entering takes the read lease and releases the write lease in one transaction. Leaving
        releases the read lease. A reader can't become a writer. What is left of the write lease's
        ``hold_at_least`` passes to the read lease: readers are let in, other writers are not. Its
        ``lock_delay`` ends.

        Args:
            ttl: seconds after which an unrenewed read lease expires; by default the ttl of the
                write lease.

        Raises:
            LockLost: on entering, the write lease is not held any more; on leaving, the read lease
                was lost.
            NotReplicated: on entering, no synchronous standby confirmed the read lease.
            OpenTransaction: on entering or leaving, a transaction was open. On entering, the write
                lease is still held.
            StandbyDatabase: on entering or leaving, the server is a standby.
            django.db.Error: on entering or leaving, the statement failed, or its result is unknown.
            ValueError: ``ttl`` is not a number of seconds above 0.
        """
        if not (ttl is None or is_ttl(ttl)):
            raise not_a_ttl("ttl", ttl)
        return _Downgrade(self, ttl)

    @property
    def rest_of_hold(self) -> float:
        """The seconds that are left of ``hold_at_least``; never too few for a later statement."""
        # _since is later than the grant by the server's clock.
        return max(0.0, self._hold_at_least - (now() - self._since))

    def hand_over(self, ttl: float, hold_at_least: float) -> SlotGrant:
        """Take a read lease and release this write lease, in one transaction.

        Args:
            ttl: seconds after which the read lease expires.
            hold_at_least: seconds for which no other writer acquires the lock, even if this
                process dies.

        Raises:
            LockLost: the write lease is not held any more.
            NotReplicated: no synchronous standby confirmed the read lease.
            OpenTransaction: a transaction is open.
            StandbyDatabase: the server is a standby.
        """
        place = self.trust.place
        delay = max(0.0, hold_at_least - ttl)
        parameters = {
            **slots.terms(place, Wish(ttl, delay, _metadata_of(self), in_turn=True), None),
            "token": self.token,
        }
        # Before anything ends: if this raises, nothing was sent, and the write lease is held on.
        store.refuse_transaction(place, connections[place.using], "taken")
        self.stop_renewing()
        grant = _acquire(place, sql.DOWNGRADE, parameters, "held")
        if not isinstance(grant, SlotGrant):
            self.trust.lose(GONE)
            raise self.loss()
        self._is_released = True
        return grant


def _metadata_of(lease: Lease) -> str:
    return json.dumps(lease.metadata)


class fenced_rwlock:  # noqa: N801 - lower-case like the other locks
    """Let many readers or one writer in, across transactions and processes, for long work.

    ::

        catalogue = fenced_rwlock("catalogue")
        with catalogue.read(ttl=30): ...
        with catalogue.write(ttl=30, timeout=60) as lease: ...

    Each reader and the writer holds a lease with a fencing token, which a heartbeat renews. Waiters
    queue, so neither side starves:

    - A waiting writer keeps new readers out. Readers that hold a lease finish first.
    - A reader that waits in front of a writer reads before that writer.
    - When a writer leaves, all readers in front of the next writer are woken together. When the
      last reader leaves, the next writer is woken.
    - A waiter that died keeps its place for six seconds.

    A reader may read again inside its block, even while a writer waits: that writer waits for this
    reader. Entering such an inner block sends one statement more.

    Guaranteed:

    - At any time there are either unexpired read leases, or one unexpired write lease, or none.
    - No write under a writer's guard commits beside a reader, and no write under a reader's guard
      beside a writer, even if a holder was frozen: the lease is checked inside the transaction that
      commits.
    - A writer's token is greater than every token granted before it. A reader's token is greater
      than the token of every earlier writer.

    Not guaranteed: that unguarded work stops when its lease is lost, see
    :class:`~django_dblock.fenced_lock`.

    Args:
        key: the parts of the key. The lock is independent of a ``fenced_lock`` on the same key.
        using: the database alias of the lock table, as in ``fenced_lock``.

    Raises:
        TypeError, ValueError: a part of the key is not valid.

    Source: P. Courtois, F. Heymans, D. Parnas, "Concurrent Control with 'Readers' and 'Writers'",
    1971; the leases are those of :class:`~django_dblock.fenced_lock`.
    """

    def __init__(self, *key: KeyPart, using: str | None = None) -> None:
        named(key)  # a wrong part fails where it is written
        self._key = key
        self._using = using

    def read(  # noqa: PLR0913 - as fenced_lock
        self,
        *,
        ttl: float,
        timeout: float | None = 0,
        heartbeat: bool = True,
        hold_at_least: float = 0,
        lock_delay: float = 0,
        on_lost: Callable[[Any], object] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> "_ReadBlock":
        """Return a block, or decorator, that reads. The options are those of ``fenced_lock``.

        Raises:
            LockTimeout: on entering, a writer held the lock, or waited in front of this reader,
                until the timeout.
            SelfDeadlock: on entering, this thread or task holds the write lock.
            OpenTransaction, NotReplicated, StandbyDatabase, UnsupportedDatabase, NotSupportedError,
            LockLost, django.db.Error, RuntimeError: raised when ``fenced_lock`` raises them.
            TypeError, ValueError: an argument is not valid; before any SQL.
        """
        return _ReadBlock(
            *self._key,
            ttl=ttl,
            timeout=timeout,
            heartbeat=heartbeat,
            hold_at_least=hold_at_least,
            lock_delay=lock_delay,
            on_lost=on_lost,
            using=self._using,
            fair=True,
            metadata=metadata,
        )

    def write(  # noqa: PLR0913 - as fenced_lock
        self,
        *,
        ttl: float,
        timeout: float | None = 0,
        heartbeat: bool = True,
        hold_at_least: float = 0,
        lock_delay: float = 0,
        on_lost: Callable[[Any], object] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> "_WriteBlock":
        """Return a block, or decorator, that writes. The options are those of ``fenced_lock``.

        Raises:
            LockTimeout: on entering, another holder had the lock, or another waiter was in front,
                until the timeout.
            SelfDeadlock: on entering, this thread or task holds the lock, for reading or writing.
            OpenTransaction, NotReplicated, StandbyDatabase, UnsupportedDatabase, NotSupportedError,
            LockLost, django.db.Error, RuntimeError: raised when ``fenced_lock`` raises them.
            TypeError, ValueError: an argument is not valid; before any SQL.
        """
        return _WriteBlock(
            *self._key,
            ttl=ttl,
            timeout=timeout,
            heartbeat=heartbeat,
            hold_at_least=hold_at_least,
            lock_delay=lock_delay,
            on_lost=on_lost,
            using=self._using,
            fair=True,
            metadata=metadata,
        )


class _Block(fenced_lock):
    """A block of a read-write lock, whose lease the entering thread or task remembers."""

    @property
    def _sender(self) -> type:
        return fenced_rwlock

    def _place(self) -> Place:
        return slots.place_of(self._entered_key(), "rwlock", self._using)

    def _push(self, lease: Lease) -> None:
        super()._push(lease)
        assert isinstance(lease, ReadLease | WriteLease)  # noqa: S101 - made by _lease() below
        _holding.set((*_holding.get(), lease))

    def _pop(self) -> Lease:
        lease = super()._pop()
        _holding.set(tuple(held for held in _holding.get() if held is not lease))
        return lease

    def _terms(self) -> dict[str, Any]:
        return {
            "ttl": self._wish.ttl,
            "hold_at_least": self._hold_at_least,
            "metadata": self._metadata,
            "on_lost": self._on_lost,
        }


class _ReadBlock(_Block):
    if TYPE_CHECKING:  # fenced_lock's own: _lease() below makes the lease

        def __enter__(self) -> ReadLease: ...

        async def __aenter__(self) -> ReadLease: ...

    def _attempt(self) -> Attempt:
        place = self._place()
        held = _held_here(place)
        _refuse_self(place, held, writes=False)
        acquire = _acquire_read_again if held else _acquire_read
        # The gate must be free, and no writer in front.
        demand = Demand(acquire, units=0, capacity=0)
        return Attempt(place, self._wish, self._timeout, demand)

    def _lease(self, place: Place, success: Success) -> ReadLease:
        return ReadLease(_granted(place, success), success, **self._terms())


class _WriteBlock(_Block):
    if TYPE_CHECKING:  # fenced_lock's own: _lease() below makes the lease

        def __enter__(self) -> WriteLease: ...

        async def __aenter__(self) -> WriteLease: ...

    def _attempt(self) -> Attempt:
        place = self._place()
        _refuse_self(place, _held_here(place), writes=True)
        # Every row must be free, and no waiter in front, readers included.
        demand = Demand(_acquire_write, scope=_ALL_SLOTS, least=1)
        return Attempt(place, self._wish, self._timeout, demand)

    def _lease(self, place: Place, success: Success) -> WriteLease:
        return WriteLease(_granted(place, success), success, **self._terms())


class _Downgrade:
    """The block that :meth:`WriteLease.downgrade` returns."""

    def __init__(self, writing: WriteLease, ttl: float | None) -> None:
        self._writing = writing
        self._ttl = writing.trust.ttl if ttl is None else float(ttl)
        self._block: Any = None

    def __enter__(self) -> ReadLease:
        self._block = _downgraded(self._writing, self._ttl)
        reading: ReadLease = self._block.__enter__()
        return reading

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(*error)


@contextmanager
def _downgraded(writing: WriteLease, ttl: float) -> Iterator[ReadLease]:
    writing.check()
    hold_at_least = writing.rest_of_hold
    before = now()
    success = Success(writing.hand_over(ttl, hold_at_least), before, 0.0)
    reading = ReadLease(
        _granted(writing.trust.place, success),
        success,
        ttl=ttl,
        hold_at_least=hold_at_least,
        metadata=writing.metadata,
        on_lost=None,
    )
    reading.trust.left_behind = Entry(writing, reading).left_behind
    failed = True
    try:  # also if no thread can be started, or for a signal handler's exception
        heartbeat.watch(reading.trust, renews=slots.renews(reading.using))
        _holding.set((*_holding.get(), reading))
        yield reading
        failed = False
    finally:
        _holding.set(tuple(held for held in _holding.get() if held is not reading))
        reading.leave(failed=failed)
    if reading.lost:
        raise reading.loss()


def _granted(place: Place, success: Success) -> Place:
    grant = success.grant
    assert isinstance(grant, SlotGrant)  # noqa: S101 - the statements return nothing else
    return replace(place, slot=grant.slots[0].slot)


def _acquire_read(place: Place, wish: Wish, ticket: int | None) -> SlotGrant | Refusal | None:
    return _acquire(place, sql.ACQUIRE_READ, slots.terms(place, wish, ticket), "held")


def _acquire_read_again(place: Place, wish: Wish, _: int | None) -> SlotGrant | Refusal | None:
    """Take a read lease beside the caller's own, in front of all waiting writers."""
    return _acquire(place, sql.ACQUIRE_READ, slots.terms(place, wish, _FIRST_OF_ALL), "held")


_FIRST_OF_ALL = 0
"""A ticket in front of every waiter's: the tickets of waiters are greater."""

_ALL_SLOTS = 2**31 - 1
"""A number above the slot of every reader."""


def _acquire_write(place: Place, wish: Wish, ticket: int | None) -> SlotGrant | Refusal | None:
    return _acquire(place, sql.ACQUIRE_WRITE, slots.terms(place, wish, ticket), "readers")


def _acquire(
    place: Place, statement: str, parameters: dict[str, Any], noun: str
) -> SlotGrant | Refusal | None:
    statements = (sql.READ_COMMITTED, sql.MAKE_GATE, sql.LOCK_GATE, statement)
    rows: list[Any] = []
    with slots.undone_if_interrupted(place, rows):
        replicated = store.durable_together(place, "taken", statements, parameters, rows)
    return slots.answer(place, rows, noun, replicated=replicated)


def _held_here(place: Place) -> list[ReadLease | WriteLease]:
    """Return the leases of this lock that this thread or task holds.

    Sends one statement if there are leases of the same name on the same alias.
    """
    leases = [
        lease
        for lease in _holding.get()
        if (lease.place.name, lease.using) == (place.name, place.using)
        and not (lease.trust.ended or lease.lost)
    ]
    if leases:
        # Another tenant's lock has the same name, unless there is a namespace. Its rows are in
        # another schema.
        schema = store.schema_of(place)
        leases = [lease for lease in leases if lease.place.schema == schema]
    return leases


def _refuse_self(place: Place, held: list[ReadLease | WriteLease], *, writes: bool) -> None:
    for lease in held:
        if isinstance(lease, WriteLease):
            raise SelfDeadlock(
                **place.facts,
                act="locked again while it is held for writing",
                advice="To read on, use lease.downgrade(); to write, use the lease you have.",
            )
        if writes:
            raise SelfDeadlock(
                **place.facts,
                act="upgraded from reading to writing",
                advice="Two readers that both upgrade would wait for each other. Leave the read "
                "block first, enter write(), and read again what you decided on.",
            )
