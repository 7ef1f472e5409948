"""Who waits for which lock, behind whom: queues made of what the server tells. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from django_dblock.core.application_name import without_labels
from django_dblock.inspect import AdvisoryLock, FencedLease
from django_dblock.monitor.formatting import visible


@dataclass(frozen=True, slots=True)
class Party:
    """One who holds or waits.

    Attributes:
        id: tells it from all others of the page.
        pid: the backend; None for the owner of a lease, and for a prepared transaction.
        name: the program, or the owner.
        state: the backend's state; None where hidden, or where there is no backend.
        lasting: seconds it has been waiting or, if it does not wait, its transaction has been open.
        waits: whether it waits, here or elsewhere.
        hidden: whether the server hides what it does.
        began: when the backend's connection did; None where hidden, or where there is none.
    """

    id: str
    pid: int | None
    name: str
    state: str | None
    lasting: float | None
    waits: bool
    hidden: bool
    began: datetime | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A lock that somebody waits for.

    Attributes:
        id: tells it from all others of the page.
        name: the lock's, to be shown.
        kind: ``advisory``, or ``fenced``.
        shared: whether those who hold it hold it together.
        holders: who has it.
        waiters: who waits, the first in front.
        longest: seconds the one who has waited longest does; None where that isn't known.
        lease: of a lease, slot and name as they stand in the table.
    """

    id: str
    name: str
    kind: Literal["advisory", "fenced"]
    shared: bool
    holders: tuple[Party, ...]
    waiters: tuple[Party, ...]
    longest: float | None
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Blocker:
    """One whom others wait for and who waits for nobody: where to begin.

    Attributes:
        party: who it is.
        queue: the first of the queues in front of which it stands.
        keeps: how many would go on, sooner or later, if it let go.
    """

    party: Party
    queue: Queue
    keeps: int


def called(lock: AdvisoryLock) -> str:
    """Return the lock's name, or else its number."""
    if lock.name is not None:
        return visible(lock.name)
    return f"({lock.classid}, {lock.objid})" if lock.key_id is None else str(lock.key_id)


def place(lock: AdvisoryLock) -> tuple[int, int, bool]:
    """Return what all who hold or want this lock have in common."""
    return lock.classid, lock.objid, lock.key_id is None


def program(lock: AdvisoryLock) -> str:
    """Return what the backend's program calls itself."""
    return visible(without_labels(lock.application_name or ""))


def queues(locks: Sequence[AdvisoryLock], leases: Iterable[FencedLease]) -> list[Queue]:
    """Return every lock that somebody waits for, the longest wait first."""
    found = [*_advisory(locks), *(_fenced(lease) for lease in leases if lease.waiting)]
    found.sort(key=lambda queue: (-(queue.longest or 0), -len(queue.waiters)))
    return found


def blockers(found: Sequence[Queue]) -> list[Blocker]:
    """Return those at whom every wait ends, the one who keeps most first; none of a cycle."""
    held_by: dict[str, list[Queue]] = defaultdict(list)
    for queue in found:
        for holder in queue.holders:
            held_by[holder.id].append(queue)
    roots = [
        Blocker(holder, queues_of[0], _kept(key, held_by))
        for key, queues_of in held_by.items()
        for holder in queues_of[0].holders
        if holder.id == key and not holder.waits
    ]
    return sorted(roots, key=lambda root: -root.keeps)


def _kept(root: str, held_by: dict[str, list[Queue]]) -> int:
    kept = {root}
    ahead = [root]
    while ahead:
        for queue in held_by.get(ahead.pop(), ()):
            new = [waiter.id for waiter in queue.waiters if waiter.id not in kept]
            kept.update(new)
            ahead += new
    return len(kept) - 1


def _advisory(locks: Sequence[AdvisoryLock]) -> Iterable[Queue]:
    waiting = {lock.pid: lock.waiting for lock in locks if not lock.granted}
    at: dict[tuple[int, int, bool], list[AdvisoryLock]] = defaultdict(list)
    for lock in locks:
        at[place(lock)].append(lock)
    for where, those in at.items():
        if all(lock.granted for lock in those):
            continue
        number = ":".join(map(str, where))
        holders = [lock for lock in those if lock.granted]
        waiters = [lock for lock in those if not lock.granted]
        yield Queue(
            id=f"lock:{number}",
            name=next((visible(lock.name) for lock in those if lock.name), called(those[0])),
            kind="advisory",
            shared=any(lock.shared for lock in holders),
            holders=tuple(_session(lock, waiting, number) for lock in holders),
            waiters=tuple(_session(lock, waiting, number) for lock in waiters),
            longest=max((lock.waiting for lock in waiters if lock.waiting), default=None),
        )


def _session(lock: AdvisoryLock, waiting: dict[int | None, float | None], number: str) -> Party:
    waits = lock.pid in waiting
    return Party(
        id=f"session:{lock.pid}" if lock.pid else f"prepared:{number}",
        pid=lock.pid,
        name=program(lock),
        state=lock.state,
        lasting=waiting[lock.pid] if waits else lock.transaction_age,
        waits=waits,
        hidden=lock.hidden,
        began=lock.backend_start,
    )


def _fenced(lease: FencedLease) -> Queue:
    key = f"{lease.slot}:{lease.name}"
    return Queue(
        id=f"lease:{key}",
        name=visible(lease.name),
        kind="fenced",
        shared=False,
        holders=(_owner(lease.owner, f"holder:{key}", lease.age, waits=False),),
        waiters=tuple(
            _owner(owner, f"waiter:{number}:{key}", None, waits=True)
            for number, owner in enumerate(lease.waiting)
        ),
        longest=None,
        lease=key if lease.state == "held" else "",
    )


def _owner(name: str, key: str, lasting: float | None, *, waits: bool) -> Party:
    return Party(key, None, visible(name), None, lasting, waits, hidden=False, began=None)
