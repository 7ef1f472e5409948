"""The queues of waiters, computed from what the server reports. Sends nothing."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from django_dblock.core.application_name import without_labels
from django_dblock.inspect import AdvisoryLock, BlockingSession, FencedLease, OtherWait
from django_dblock.monitor.formatting import visible


@dataclass(frozen=True, slots=True)
class Party:
    """A holder or a waiter.

    Attributes:
        id: unique on the page.
        pid: the backend; None for the owner of a lease, and for a prepared transaction.
        name: the program, or the owner.
        state: the backend's state; None where hidden, or where there is no backend.
        lasting: seconds it has been waiting or, if it does not wait, its transaction has been open.
        waits: whether the party waits, in this queue or another.
        waits_for: the object that the party waits for, if that is neither an advisory lock nor a
            lease: ``a row of auth_user``; else empty.
        outsider: whether the backend has no advisory lock that is shown.
        lease: for the holder of a lease, the slot and the name of the lease in the table.
        hidden: whether the server hides the backend's state and query.
        began: when the backend's connection began; None if hidden, or if there is no backend.
    """

    id: str
    pid: int | None
    name: str
    state: str | None
    lasting: float | None
    waits: bool
    hidden: bool
    began: datetime | None
    waits_for: str = ""
    outsider: bool = False
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Queue:
    """A lock with its holders and waiters.

    Attributes:
        id: unique on the page.
        name: the lock's name to show.
        kind: ``advisory``, ``fenced``, or ``other``: a row, a table or a transaction that a holder
            of an advisory lock waits for, directly or behind others.
        shared: whether the holders share the lock.
        holders: the parties that hold the lock.
        waiters: the parties that wait, in the order of the queue.
        longest: seconds that the longest waiter has waited; None if that is not known.
        role: for leases, the role of their holders; ``lock`` if there is only one.
    """

    id: str
    name: str
    kind: Literal["advisory", "fenced", "other"]
    shared: bool
    holders: tuple[Party, ...]
    waiters: tuple[Party, ...]
    longest: float | None
    role: str = ""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A party that others wait for and that waits for nothing itself: the cause of the waits.

    Attributes:
        party: the party.
        queue: the first queue whose lock the party holds.
        keeps: how many parties wait for this party, directly or behind others.
    """

    party: Party
    queue: Queue
    keeps: int

    @property
    def is_ours(self) -> bool:
        """Whether the blocker has an advisory lock or a lease that is shown, not only rows."""
        return not self.party.outsider


def called(lock: AdvisoryLock) -> str:
    """Return the lock's name, or else its number."""
    if lock.name is not None:
        return visible(lock.name)
    return f"({lock.classid}, {lock.objid})" if lock.key_id is None else str(lock.key_id)


def place(lock: AdvisoryLock) -> tuple[int, int, bool]:
    """Return the identity of a lock, equal for all its holders and waiters."""
    return lock.classid, lock.objid, lock.key_id is None


def program(session: AdvisoryLock | BlockingSession) -> str:
    """Return the program's own name of a backend."""
    if isinstance(session, BlockingSession):
        return visible(session.program)
    return visible(without_labels(session.application_name or ""))


def queues(
    locks: Sequence[AdvisoryLock],
    leases: Iterable[FencedLease],
    others: Sequence[BlockingSession] = (),
    waits: Sequence[OtherWait] = (),
) -> list[Queue]:
    """Return every lock that has waiters, the longest wait first."""
    parties = _Parties(locks, others, waits)
    found = [
        *_advisory(locks, parties),
        *_other(waits, parties),
        *_fenced(leases),
    ]
    found.sort(key=lambda queue: (-(queue.longest or 0), -len(queue.waiters)))
    return found


def blockers(found: Sequence[Queue]) -> list[Blocker]:
    """Return the parties that wait for nothing themselves, those with most waiters first."""
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


class _Parties:
    """The backends, each as the same party in all queues."""

    def __init__(
        self,
        locks: Sequence[AdvisoryLock],
        others: Sequence[BlockingSession],
        waits: Sequence[OtherWait],
    ) -> None:
        self._locks = {lock.pid: lock for lock in locks}
        self._others = {other.pid: other for other in others}
        self._waiting = {lock.pid: lock.waiting for lock in locks if not lock.granted}
        self._elsewhere = {wait.pid: wait for wait in waits}

    def of_lock(self, lock: AdvisoryLock, number: str) -> Party:
        """Return the party that holds or requests this lock."""
        return self._party(lock, f"session:{lock.pid}" if lock.pid else f"prepared:{number}")

    def of_pid(self, pid: int) -> Party:
        """Return the party of a backend that another one waits for; 0 is a prepared transaction."""
        source = self._others.get(pid or None) or self._locks.get(pid or None)
        key = f"session:{pid}" if pid else "prepared:0"
        if source is None:  # the backend has ended meanwhile
            return Party(key, pid or None, "", None, None, waits=False, hidden=False, began=None)
        return self._party(source, key)

    def _party(self, source: AdvisoryLock | BlockingSession, key: str) -> Party:
        pid = source.pid
        waits = pid is not None and (pid in self._waiting or pid in self._elsewhere)
        elsewhere = self._elsewhere.get(pid) if pid is not None else None
        lasting = source.transaction_age
        if waits:
            lasting = elsewhere.waiting if elsewhere else self._waiting[pid]
        return Party(
            id=key,
            pid=pid,
            name=program(source),
            state=source.state,
            lasting=lasting,
            waits=waits,
            hidden=source.hidden,
            began=source.backend_start,
            waits_for=visible(elsewhere.waits_for) if elsewhere else "",
            outsider=isinstance(source, BlockingSession),
        )


def _other(waits: Sequence[OtherWait], parties: _Parties) -> Iterable[Queue]:
    on: dict[str, list[OtherWait]] = defaultdict(list)
    for wait in waits:
        on[wait.lock].append(wait)
    for lock, those in on.items():
        waiting = {wait.pid for wait in those}
        blocking = dict.fromkeys(pid for wait in those for pid in wait.blocked_by)
        yield Queue(
            id=f"other:{lock}",
            name=visible(those[0].waits_for),
            kind="other",
            shared=False,
            holders=tuple(parties.of_pid(pid) for pid in blocking if pid not in waiting),
            waiters=tuple(parties.of_pid(wait.pid) for wait in those),
            longest=max((wait.waiting for wait in those if wait.waiting), default=None),
        )


def _advisory(locks: Sequence[AdvisoryLock], parties: _Parties) -> Iterable[Queue]:
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
            holders=tuple(parties.of_lock(lock, number) for lock in holders),
            waiters=tuple(parties.of_lock(lock, number) for lock in waiters),
            longest=max((lock.waiting for lock in waiters if lock.waiting), default=None),
        )


def _fenced(leases: Iterable[FencedLease]) -> Iterable[Queue]:
    """Return a queue for each name: its permits or readers are waited for together."""
    of: dict[str, list[FencedLease]] = defaultdict(list)
    for lease in leases:
        of[lease.name].append(lease)
    for name, those in of.items():
        waiting = [owner for lease in those for owner in lease.waiting]
        if waiting:
            yield Queue(
                id=f"lease:{name}",
                name=visible(those[0].key),
                kind="fenced",
                shared=len(those) > 1,
                holders=tuple(map(_holder, those)),
                waiters=tuple(
                    _owner(owner, f"waiter:{number}:{name}", None, waits=True)
                    for number, owner in enumerate(waiting)
                ),
                longest=None,
                role=those[0].role,
            )


def _holder(lease: FencedLease) -> Party:
    key = f"{lease.slot}:{lease.name}"
    shown = key if lease.state == "held" else ""
    return _owner(lease.owner, f"holder:{key}", lease.age, waits=False, lease=shown)


def _owner(name: str, key: str, lasting: float | None, *, waits: bool, lease: str = "") -> Party:
    return Party(
        key, None, visible(name), None, lasting, waits, hidden=False, began=None, lease=lease
    )
