"""What users of the coordination tools write, seen by mypy --strict; never run."""

from datetime import date
from typing import Any, assert_type

from django_dblock import (
    AsyncOncePer,
    HeldPermit,
    Leader,
    OncePer,
    Partition,
    Period,
    PeriodRun,
    Permit,
    ReadLease,
    Share,
    Term,
    WriteLease,
    advisory_semaphore,
    fenced_rwlock,
    fenced_semaphore,
    latch,
    leader,
    leadership,
    missed,
    once_per,
    partition_of,
    partitions,
)


def semaphores() -> None:
    with fenced_semaphore("api", permits=5, ttl=30, units=2, fair=True) as permit:
        assert_type(permit, Permit)
        assert_type(permit.slots, tuple[int, ...])
    with advisory_semaphore("pdf", permits=3, timeout=None) as held:
        assert_type(held, HeldPermit)


def rwlocks() -> None:
    lock = fenced_rwlock("catalogue")
    with lock.read(ttl=30) as reading:
        assert_type(reading, ReadLease)
    with lock.write(ttl=30, timeout=60) as writing:
        assert_type(writing, WriteLease)
        with writing.downgrade() as again:
            assert_type(again, ReadLease)


async def elections() -> None:
    for term in leadership("scheduler", ttl=15):
        assert_type(term, Term)
    async for elected in leadership("scheduler", ttl=15):
        assert_type(elected, Term)
    assert_type(leader("scheduler"), Leader | None)


@once_per("day", key="settlement", tz="Europe/Vienna")
def settle(period: Period) -> int:
    return len(period.label)


@once_per("15 min", key=("sync", 7), mode="lease")
async def sync(period: Period, run: Any) -> str:
    return period.label


async def periods() -> None:
    assert_type(settle, OncePer[int])
    assert_type(settle(), int | None)
    assert_type(settle.run(), PeriodRun)
    asynchronous: AsyncOncePer[str] = sync
    assert_type(await asynchronous(), str | None)
    assert_type(missed("settlement", per="day", since=date(2026, 1, 1)), list[Period])


def shares() -> None:
    with partitions("outbox", count=64, ttl=30) as mine:
        assert_type(mine, Share)
        for part in mine:
            assert_type(part, Partition)
            assert_type(part.number, int)
    assert_type(partition_of(("order", 7), 64), int)


def latches() -> None:
    done = latch("import", 7, parties=["a", "b"])
    assert_type(done.count_down("a"), bool)
    assert_type(done.done, bool)
