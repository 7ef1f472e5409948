"""``partitions``: work that is divided among the live workers instead of locked."""

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from asgiref.sync import sync_to_async

from django_dblock import signals
from django_dblock.coordination import slots
from django_dblock.coordination.slots import QuietLease, SlotGrant
from django_dblock.core.application_name import NamedKey, named
from django_dblock.core.cancellation import to_its_end
from django_dblock.fencing import store
from django_dblock.fencing.acquire import Success
from django_dblock.fencing.deadline import EXPIRED, now
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.lease import Lease, is_ttl, not_a_ttl
from django_dblock.fencing.lock import Blocks, Entry, storable
from django_dblock.fencing.store import Grant, Place, Wish
from django_dblock.keys import KeyPart, encode, key_id
from django_dblock.sql import coordination as sql

logger = logging.getLogger("django_dblock.coordination")

L = TypeVar("L", bound=Lease)

_LONGEST_PAUSE = 0.5
"""Seconds between two looks of a worker that owns less than its share."""


def partition_of(key: KeyPart | tuple[KeyPart, ...], count: int) -> int:
    """Return the number of the partition of a key, from 0 to count - 1.

    Equal keys have the same number, in every process and release: the number is the digest of a
    lock's key (:mod:`django_dblock.keys`) without a namespace, modulo ``count``. Write the number
    into the row (``bucket = partition_of(order.pk, 64)``), so that a worker can select its own
    rows.

    Args:
        key: a part, or a tuple of parts.
        count: the number of partitions, 1 to 10,000.

    Raises:
        TypeError, ValueError: a part of the key, or ``count``, is not valid.
    """
    _check_count(count)
    return key_id(encode(key if isinstance(key, tuple) else (key,))) % count


class Partition(QuietLease):
    """One partition that this worker owns, and the lease on the partition.

    ``with part:`` ends the block silently if the partition was lost, and the loop continues with
    the next partition.

    Attributes:
        number: the partition's number, from 0 to count - 1.
    """

    @property
    def number(self) -> int:
        """The partition's number."""
        return self.trust.place.slot


class Share:
    """The partitions that this worker owns, as a block of :class:`partitions` returns them.

    Iterating yields each partition that this worker owns now, once, beginning after the partition
    that was yielded last. Between two partitions, this worker gives up partitions that are other
    workers' shares, but never a partition that is in use. A partition is in use until the loop asks
    for the next one. If this worker owns nothing, iterating sleeps for at most half a second and
    yields nothing.

    Raises:
        OpenTransaction, NotReplicated, StandbyDatabase, RuntimeError, ValueError, django.db.Error:
            on iterating, when :class:`partitions` says so.
    """

    def __init__(
        self, key: NamedKey, count: int, ttl: float, using: str | None, metadata: str
    ) -> None:
        self.count = count
        self._ttl = ttl
        self._place = slots.place_of(key, "partition", using)
        self._worker_place = slots.place_of(key, "worker", using)
        self._wish = Wish(ttl, 0.0, "{}", in_turn=False)
        self._worker_wish = Wish(ttl, 0.0, metadata, in_turn=False)
        self._mutex = threading.RLock()
        self._owned: dict[int, Partition] = {}
        self._used: Counter[int] = Counter()
        self._worker: Lease | None = None
        self._workers = 0
        self._last = -1
        self._due = 0.0
        self._is_checked = False
        self._is_left = False
        self._left_behind: Callable[[], str | None] = _never_left

    def __len__(self) -> int:
        """Return how many partitions are owned now."""
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"<Share {self._place.facts['name']} {len(self)} of {self.count}>"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the partitions that are owned now, in ascending order. Sends nothing."""
        with self._mutex:
            return tuple(number for number in sorted(self._owned) if not self._owned[number].lost)

    @property
    def workers(self) -> int:
        """The number of live workers when this worker last balanced."""
        return self._workers

    def __iter__(self) -> Iterator[Partition]:
        self.balance_if_due()
        for number in self._turn():
            part = self._begin_use(number)
            if part is None:
                continue
            try:
                yield part
            finally:
                self._end_use(number)
            self.balance_if_due()
        if not self.numbers:
            time.sleep(self.pause)

    async def __aiter__(self) -> AsyncIterator[Partition]:
        await self._abalance_if_due()
        for number in self._turn():
            part = self._begin_use(number)
            if part is None:
                continue
            try:
                yield part
            finally:
                self._end_use(number)
            await self._abalance_if_due()
        if not self.numbers:
            await asyncio.sleep(self.pause)

    @property
    def pause(self) -> float:
        """Seconds to pause while this worker owns nothing."""
        return min(max(0.0, self._due - now()), _LONGEST_PAUSE)

    def balance_if_due(self) -> None:
        """Balance if that is due: at most a third of the ttl after the last time."""
        if now() >= self._due:
            self.balance()

    async def _abalance_if_due(self) -> None:
        if now() >= self._due:
            _, cancelled = await to_its_end(sync_to_async(self.balance)())
            if cancelled is not None:
                raise cancelled

    def balance(self) -> None:
        """Give up partitions beyond this worker's share, or take partitions up to the share.

        One statement, and one more if partitions are given up or taken.

        Raises:
            OpenTransaction: a transaction is open.
            NotReplicated: no synchronous standby confirmed a lease.
            StandbyDatabase: the server is a standby.
            RuntimeError: this worker lost its registration, and 10,000 other workers are live; or
                the block was left.
            ValueError: this worker lost its registration, and live workers use another ``count``.
            django.db.Error: the database failed; the leases run on until they expire.
        """
        with self._mutex:
            if self._is_left:
                raise RuntimeError(
                    f"{self._place.facts['name']}: the block of partitions() was left, so this "
                    f"worker owns nothing. Enter a block to take partitions again."
                )
            for number in [number for number, part in self._owned.items() if part.lost]:
                self._owned.pop(number).stop_renewing()
            if self._worker is None or self._worker.lost:
                self._register()
            if not self._is_checked:
                self._check_count()
            target = self._target()
            surplus = len(self._owned) - target
            if surplus > 0:
                self._give_up(surplus)
            elif surplus < 0:
                self._take(-surplus)
            # Less than the share: other workers are about to give up partitions.
            longest = self._ttl / 3
            if len(self._owned) < target:
                longest = min(longest, _LONGEST_PAUSE)
            self._due = now() + random.uniform(longest / 2, longest)  # noqa: S311 - no secret

    def join(self) -> None:
        """Register this worker and take its share.

        Raises:
            ValueError: live workers use another ``count`` for the same key.
            RuntimeError: the key has 10,000 workers, which is the limit.
            OpenTransaction, NotReplicated, StandbyDatabase, UnsupportedDatabase: raised when
                ``fenced_lock`` raises them.
        """
        self.balance()

    def leave(self) -> None:
        """Release every partition and the registration, in one statement.

        Raises:
            OpenTransaction: a transaction is open.
            StandbyDatabase: the server is a standby.
            django.db.Error: the release failed, or its result is unknown; then the leases expire.
        """
        with self._mutex:
            leases: list[Lease] = list(self._owned.values())
            if self._worker is not None:
                leases.append(self._worker)
            self._owned.clear()
            self._worker = None
            self._is_left = True
            slots.release_all(leases)

    def note_entry(self, left_behind: Callable[[], str | None]) -> None:
        """Record the caller that entered the block; the leases are renewed while it can leave.

        Args:
            left_behind: returns why the caller can't leave the block any more; None while the
                caller can.
        """
        with self._mutex:
            self._left_behind = left_behind
            leases: list[Lease | None] = [self._worker, *self._owned.values()]
            for lease in filter(None, leases):
                lease.trust.left_behind = left_behind

    def _turn(self) -> list[int]:
        with self._mutex:
            numbers = sorted(self._owned)
            after = [number for number in numbers if number > self._last]
            return after + [number for number in numbers if number <= self._last]

    def _begin_use(self, number: int) -> Partition | None:
        with self._mutex:
            part = self._owned.get(number)
            if part is None or part.lost:
                return None
            self._used[number] += 1
            self._last = number
            return part

    def _end_use(self, number: int) -> None:
        with self._mutex:
            self._used[number] -= 1

    def _register(self) -> None:
        """Acquire a worker's slot; a worker that lost its slot gives up what is not in use."""
        # While this worker was frozen or cut off, workers with another count may have begun.
        self._is_checked = False
        if self._owned:
            self._give_up(len(self._owned))
        if self._worker is not None:
            self._worker.stop_renewing()
        grant, place, before = self._acquire(
            self._worker_place, self._worker_wish, slots.LONGEST, 1
        )
        if not grant:
            raise RuntimeError(
                f"{self._place.facts['name']} has {slots.LONGEST} workers, which is the limit."
            )
        # Later statements use the registration's schema, even if the search path has changed.
        self._worker_place = place
        self._place = replace(self._place, schema=place.schema)
        self._worker = self._lease(Lease, place, grant[0], before)

    def _check_count(self) -> None:
        """Leave and raise an error if live workers use another count."""
        counts = {count for _, count in self._live()} - {self.count}
        if counts:
            self.leave()
            raise ValueError(
                f"{self._place.facts['name']}: other workers split it into {counts.pop()} "
                f"partitions, this one into {self.count}. The same rows would be in two "
                f"partitions: stop the other workers first, or use another key."
            )
        self._is_checked = True

    def _target(self) -> int:
        """Return the size of this worker's share; the first workers share the remainder."""
        live = [slot for slot, _ in self._live()]
        self._workers = len(live)
        assert self._worker is not None  # noqa: S101 - balance() has registered it
        own = self._worker.trust.place.slot
        if own not in live:  # lost, but not noticed yet: give up every partition
            return 0
        share, rest = divmod(self.count, len(live))
        return share + (live.index(own) < rest)

    def _live(self) -> list[tuple[int, int]]:
        return store.run(
            self._worker_place, "balanced", sql.WORKERS, {"name": self._worker_place.name}
        )

    def _give_up(self, surplus: int) -> None:
        idle = [number for number in sorted(self._owned, reverse=True) if not self._used[number]]
        leaving = [self._owned.pop(number) for number in idle[:surplus]]
        slots.release_all(leaving)

    def _take(self, missing: int) -> None:
        grant, place, before = self._acquire(self._place, self._wish, self.count, missing)
        left = iter(grant)
        try:
            for slot in left:
                expired = self._owned.get(slot.slot)
                if expired is not None:  # the heartbeat has not noticed the expiry yet
                    expired.trust.lose(EXPIRED)
                    expired.stop_renewing()
                self._owned[slot.slot] = self._lease(Partition, place, slot, before)
        except BaseException:  # such as a signal handler's: nobody would release the others
            with suppress(*store.FAILURES):
                slots.give_back(place, [(place.name, slot.slot, slot.token) for slot in left])
            raise

    def _acquire(
        self, place: Place, wish: Wish, permits: int, units: int
    ) -> tuple[tuple[slots.Slot, ...], Place, float]:
        # An attempt may only make the rows, or lose the rows to another worker.
        for _ in range(3):
            before = now()
            answer = slots.acquire_slots(
                place, wish, None, permits=permits, units=units, at_least=1
            )
            if isinstance(answer, SlotGrant):
                return answer.slots, replace(place, schema=answer.schema), before
            if answer is not None:
                break
        return (), place, before

    def _lease(self, kind: type[L], place: Place, slot: slots.Slot, before: float) -> L:
        place = replace(place, slot=slot.slot)
        lease = kind(
            place,
            Success(Grant(slot.token, slot.expires_at), before, 0.0),
            ttl=self._ttl,
            hold_at_least=0,
            metadata={},
            on_lost=None,
        )
        lease.trust.left_behind = self._left_behind
        try:
            heartbeat.watch(lease.trust, renews=slots.renews(place.using))
            if signals.lock_acquired.receivers:
                signals.lock_acquired.send_robust(
                    partitions,
                    kind=place.kind,
                    shared=False,
                    **place.facts,
                    waited=0.0,
                    took=now() - before,
                    token=lease.token,
                )
        except BaseException:  # no thread can be started, or a signal handler's exception
            lease.leave(failed=True)
            raise
        return lease


class partitions:  # noqa: N801 - context managers are lower-case nouns
    """Divide work among the live workers: each owns a share, and no worker waits for a lock.

    ::

        with partitions("outbox", count=64, ttl=30) as mine:
            while not stop.wait(1):
                for part in mine:
                    with part, part.guard():
                        handle(Message.objects.filter(bucket=part.number)[:100])

    ``count`` numbered partitions are divided among the workers, which are the callers in such a
    block. Each worker owns ``count`` / workers partitions, rounded up or down, and holds a lease on
    each, which a heartbeat renews. When a worker joins, the other workers give up partitions beyond
    their shares, between two uses, at the next iteration after a third of the ttl. When a worker
    leaves, the others take over its partitions. When a worker dies, the others take them over after
    the ttl.

    Guaranteed:

    - At any time at most one worker has an unexpired lease on a partition.
    - Two workers never both commit under ``part.guard()`` of the same partition for overlapping
      terms, even if a worker was frozen: ownership is checked inside the transaction that commits.
    - After any join, leave or crash, every partition is owned again within ttl + ttl / 3 plus the
      longest use, while live workers keep iterating.
    - A worker's iteration skips no partition that the worker owns.

    Not guaranteed:

    - That unguarded work stops when its partition is lost.
    - An order between partitions.
    - Anything about rows that were numbered with another ``count``. While workers run, the count is
      fixed: a worker with another count is refused.

    ``async with`` and ``async for`` work as well.

    Args:
        key: the parts of the key. The partitions are independent of a ``fenced_lock`` on the same
            key.
        count: the number of partitions, 1 to 10,000: several times the number of workers that you
            will ever have.
        ttl: seconds after which the partitions of a worker that died or froze are taken over.
        using: the database alias of the lock table, as in ``fenced_lock``.
        metadata: a JSON object, shown with this worker's registration.

    Raises:
        OpenTransaction: on entering, iterating or leaving, a transaction was open.
        NotReplicated: on entering or iterating, no synchronous standby confirmed a lease.
        StandbyDatabase: on entering, iterating or leaving, the server is a standby.
        UnsupportedDatabase: on entering, the database is not PostgreSQL.
        NotSupportedError: on entering, iterating or leaving, the connection is in psycopg's
            pipeline mode.
        django.db.Error: on entering, iterating or leaving, a statement failed. Leases that could
            not be released expire.
        ValueError: on entering, live workers use another ``count``; on iterating, too, if this
            worker has lost its registration. Before any SQL, a part of the key or an argument is
            not valid.
        TypeError: before any SQL, a part of the key or an argument is not valid.
        RuntimeError: on entering, the key has 10,000 workers, which is the limit; on iterating,
            this worker has lost its registration, and the limit is reached; or the block was left.
            On leaving, the block was not entered in this thread or task, and it is unclear which of
            the open blocks is meant.

    Source: the consumer groups of Apache Kafka, and the lease table of the Kinesis Client Library.
    """

    def __init__(
        self,
        *key: KeyPart,
        count: int,
        ttl: float,
        using: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        _check_count(count)
        if not is_ttl(ttl):
            raise not_a_ttl("ttl", ttl)
        if not (metadata is None or isinstance(metadata, dict)):
            raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}.")
        self._key = named(key)
        self._count = count
        self._ttl = float(ttl)
        self._using = using
        self._metadata = storable({**(metadata or {}), "count": count})

    def __enter__(self) -> Share:
        share = self._join()
        self._push(share)
        return share

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _leave(_blocks.remove(self), failed=kind is not None)

    async def __aenter__(self) -> Share:
        share, cancelled = await to_its_end(sync_to_async(self._join)())
        if cancelled is not None:
            await to_its_end(sync_to_async(_leave)(share, failed=True))
            raise cancelled
        self._push(share)
        return share

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        share = _blocks.remove(self)
        _, cancelled = await to_its_end(sync_to_async(_leave)(share, failed=kind is not None))
        if cancelled is not None:
            raise cancelled

    def _push(self, share: Share) -> None:
        entry = Entry(self, share)
        share.note_entry(entry.left_behind)
        _blocks.add(entry)

    def _join(self) -> Share:
        share = Share(self._key, self._count, self._ttl, self._using, self._metadata)
        try:
            share.join()
        except BaseException:
            _leave(share, failed=True)
            raise
        return share


_blocks: Blocks[Share] = Blocks("dblock_partitions")


def _leave(share: Share, *, failed: bool) -> None:
    try:
        share.leave()
    except store.FAILURES:
        if not failed:
            raise
        logger.warning("%r was not released, it expires", share, exc_info=True)


def _never_left() -> None:
    """Return None: a block that was not entered yet is never left behind."""


def _check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count must be an int, not {type(count).__name__}.")
    if not 1 <= count <= slots.LONGEST:
        raise ValueError(f"count={count} is not a number from 1 to {slots.LONGEST}.")
