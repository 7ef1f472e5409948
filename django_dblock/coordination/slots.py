"""Leases on one of several slots: their names, acquisition and release."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeAlias

from django.db import connections

from django_dblock.conf import conf
from django_dblock.core.application_name import NamedKey
from django_dblock.exceptions import LockLost, NotReplicated
from django_dblock.fencing import store
from django_dblock.fencing.deadline import Trust
from django_dblock.fencing.lease import Lease
from django_dblock.fencing.lease_name import lease_name
from django_dblock.fencing.store import Grant, Place, Refusal, Wish
from django_dblock.sql import coordination as sql

Kind: TypeAlias = Literal["semaphore", "rwlock", "leader", "partition", "worker"]

LONGEST = 10_000
"""The most permits of a semaphore, and the most partitions: each is a row."""


class Slot(NamedTuple):
    """One slot that was granted."""

    slot: int
    token: int
    expires_at: datetime


class SlotGrant(Grant):
    """A grant of one or more slots; the fields of :class:`Grant` are those of the first slot."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, slots: Sequence[Slot], schema: str) -> "SlotGrant":
        """Return the grant of these slots, whose rows are in the schema."""
        found = cls(slots[0].token, slots[0].expires_at, schema)
        found.slots = tuple(slots)
        return found


def place_of(key: NamedKey, kind: Kind, using: str | None) -> Place:
    """Return the place in the lock table of a key's leases of one kind, in the namespace of now.

    Raises:
        UnsupportedDatabase: the database is not PostgreSQL.
    """
    name = f"{lease_name(key, conf.namespace)}~{kind}"
    return Place(key, name, store.alias_for(using), kind=kind)


def acquire_slots(  # noqa: PLR0913 - the terms of one statement
    place: Place,
    wish: Wish,
    ticket: int | None,
    *,
    permits: int,
    units: int,
    at_least: int,
) -> SlotGrant | Refusal | None:
    """Take ``units`` free slots below ``permits``, or none if fewer than ``at_least`` are free.

    The result is None if the statement has only made the rows, or if another transaction had locked
    every free slot. Then try again.

    Raises:
        OpenTransaction: the caller has a transaction open.
        StandbyDatabase: the server is a standby.
        UnsupportedDatabase: the server is CockroachDB.
        NotReplicated: no synchronous standby confirmed the grant; the lease was released.
    """
    parameters = {
        **terms(place, wish, ticket),
        "permits": permits,
        "units": units,
        "at_least": at_least,
        "in_turn": wish.in_turn,
    }
    return granted(place, sql.ACQUIRE_SLOTS, parameters, "held")


def terms(place: Place, wish: Wish, ticket: int | None) -> dict[str, Any]:
    """Return the parameters of every statement that grants a lease."""
    return {
        "name": place.name,
        "owner": store.owner(),
        "ttl": wish.ttl,
        "lock_delay": wish.lock_delay,
        "metadata": wish.metadata,
        "ticket": ticket,
    }


def granted(
    place: Place, statement: str, parameters: dict[str, Any], noun: str
) -> SlotGrant | Refusal | None:
    """Run a statement that grants leases; return the grant, or a refusal that names the holder.

    Raises:
        OpenTransaction: the caller has a transaction open.
        StandbyDatabase: the server is a standby.
        UnsupportedDatabase: the server is CockroachDB.
        NotReplicated: no synchronous standby confirmed the grant; the lease was released.
    """
    rows: list[Any] = []
    with undone_if_interrupted(place, rows):
        replicated = store.durable(place, "taken", statement, parameters, rows)
    return answer(place, rows, noun, replicated=replicated)


@contextmanager
def undone_if_interrupted(place: Place, rows: list[Any]) -> Iterator[None]:
    """Release what the block's statement was granted if an exception interrupts the block.

    Args:
        place: the place of the leases.
        rows: the list for the rows, as in :func:`django_dblock.fencing.store.run`.
    """
    try:
        yield
    except BaseException:
        if slots := _granted_slots(rows):
            with suppress(*store.FAILURES):
                _undo(replace(place, schema=rows[0][5]), slots)
        raise


def _granted_slots(rows: list[Any]) -> list[Slot]:
    return sorted(Slot(*row[1:4]) for row in rows if row[0] == "acquired")


def _undo(place: Place, slots: list[Slot]) -> None:
    give_back(place, [(place.name, slot.slot, slot.token) for slot in slots])


def answer(
    place: Place, rows: list[Any], noun: str, *, replicated: bool
) -> SlotGrant | Refusal | None:
    """Return the grant or the refusal that the rows of a granting statement report.

    Raises:
        NotReplicated: no synchronous standby confirmed the grant; the lease was released.
    """
    if slots := _granted_slots(rows):
        schema: str = rows[0][5]
        if not replicated:
            _undo(replace(place, schema=schema), slots)
            raise NotReplicated(**place.facts)
        return SlotGrant.of(slots, schema)
    if not rows or rows[0][0] == "made":
        return None
    _, _, token, _, remaining, owner, count, _ = rows[0]
    others = f" and {count - 1} more {noun}" if count > 1 else ""
    return Refusal(remaining, token, f"{owner}{others}")


def give_back(
    place: Place,
    leases: Sequence[tuple[str, int, int]],
    *,
    hold_at_least: float = 0,
    was_lost: bool = False,
) -> set[tuple[str, int]]:
    """Release leases in one statement; return (name, slot) of each lease that was still held.

    Args:
        place: the place of one of the leases, for errors; waiters for that name are woken.
        leases: name, slot and token of each.
        hold_at_least: seconds since the grant for which a slot stays taken.
        was_lost: whether the caller has lost one of the leases, so that the lock_delay is kept.

    Raises:
        OpenTransaction: the caller has a transaction open.
        StandbyDatabase: the server is a standby.
    """
    parameters = {
        "name": place.name,
        "names": [name for name, _, _ in leases],
        "slots": [slot for _, slot, _ in leases],
        "tokens": [token for _, _, token in leases],
        "hold_at_least": hold_at_least,
        "was_lost": was_lost,
    }
    rows = store.run_again(place, "released", sql.RELEASE_SLOTS, parameters)
    return {(name, slot) for name, slot, _ in rows}


class QuietLease(Lease):
    """A lease of a loop: if the lease is lost, ``with lease:`` ends the block silently."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._is_own_loss(error)

    def _is_own_loss(self, error: BaseException | None) -> bool:
        return isinstance(error, LockLost) and error.token == self.token and self.lost


def release_all(leases: Sequence[Lease]) -> None:
    """Release leases on the same alias in one statement; leave out leases that were released.

    Raises:
        OpenTransaction: the caller has a transaction open.
        StandbyDatabase: the server is a standby.
        django.db.Error: the release failed, or its result is unknown; then the leases expire.
    """
    held = [lease for lease in leases if not (lease.trust.ended or lease.trust.foreign)]
    if not held:
        return
    lost = [lease.lost for lease in held]
    for lease in held:
        lease.stop_renewing()
    ours = give_back(held[0].trust.place, [identity(lease.trust) for lease in held])
    for lease, was_lost in zip(held, lost, strict=True):
        place = lease.trust.place
        lease.note_release(had=(place.name, place.slot) in ours, lost=was_lost)


def identity(trust: Trust) -> tuple[str, int, int]:
    """Return the name, slot and token, which identify a grant in the table."""
    return trust.place.name, trust.place.slot, trust.token


def renews(using: str) -> bool:
    """Return whether other connections see a new lease; false in TestCase's transaction."""
    return not connections[using].in_atomic_block
