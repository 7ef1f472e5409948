"""What the open transaction has written past an instance, as by ``QuerySet.update()``.

``parent.children.add(child)`` and ``Child.objects.filter(pk=child.pk).update(…)`` bump the row, and
the instance ``child`` in memory does not know. Its next ``save()`` finds another version, and yet
nobody else has written.

That is told apart by counting. Each UPDATE of ours whose rows are known exactly (the query names
their primary keys, and that many rows were changed) is remembered for as long as its transaction
is open. A conflict asks: how many of these came after the instance was read or written? Versions
grow by one with each write, so if the row's version is higher by just that number, all the writes
in between were this transaction's own. If it is higher by more, there was another write, and it is
a conflict. A write that is not remembered, or was rolled back, is not counted; that can only lead
to a conflict that need not have been, never to a lost update.

Then the rule is that of any three-way merge: what only the UPDATE has changed is taken over into
the instance; what both have changed, and not to the same value, is a conflict with oneself.

After COMMIT it is a conflict as any other. The count could still be made, but a thread serves many
people one after the other, and what one of them has seen, another has not.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from django.db import connections
from django.db.models.expressions import Col
from django.db.models.lookups import Exact, In

from django_dblock.versioning import loaded_state, rollback
from django_dblock.versioning.rollback import Instance

if TYPE_CHECKING:
    from django.db.models import QuerySet

MOST: Final = 1000
"""Rows that a connection remembers, and rows of one UPDATE that are remembered."""

_KEPT: Final = "_dblock_own_writes"


class Epoch:
    """A moment between two remembered writes of this process; an instance is of one of them."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Come after all writes in whatever process it is unpickled, so that none is counted."""
        return Epoch, (float("inf"),)


@dataclass(slots=True)
class OwnWrite:
    """One UPDATE of one row.

    Attributes:
        epoch: the number of the epoch that began with it.
        names: the fields it wrote, without the version.
        fate: its transaction, or savepoint.
    """

    epoch: float
    names: frozenset[str]
    fate: rollback.Fate


class _Clock:
    """The present epoch of this process."""

    def __init__(self) -> None:
        self.now = Epoch(0)
        self._lock = threading.Lock()

    def tick(self) -> Epoch:
        """Begin the next epoch. Locked: an epoch that was over must not come back."""
        with self._lock:
            self.now = Epoch(self.now.number + 1)
            return self.now


clock = _Clock()


def named_keys(queryset: "QuerySet[Any]") -> frozenset[Any] | None:
    """Return the primary keys that a queryset names, all of its rows; None if it names none."""
    model: Any = queryset.model._meta.concrete_model
    version_model = model._version_field.model
    query = queryset.query
    if query.is_sliced or query.combinator or query.where.negated or query.where.connector != "AND":
        return None
    if model is not version_model:
        link = model._meta.get_ancestor_link(version_model)
        if link is not model._meta.pk:
            return None  # the keys of the two tables are not the same
    targets = (model._meta.pk, version_model._meta.pk)
    for condition in query.where.children:
        if isinstance(condition, Exact | In) and isinstance(condition.lhs, Col):
            column = condition.lhs
            # The same table may be joined once more: the key of a child, a neighbour, an ancestor.
            updated = column.alias == query.base_table and column.target in targets
            values = [condition.rhs] if isinstance(condition, Exact) else condition.rhs
            if updated and isinstance(values, list | tuple | set):
                return _keys(version_model, values)
    return None


def _keys(model: Any, values: Iterable[Any]) -> frozenset[Any] | None:
    keys = frozenset(
        loaded_state.cleaned(model._meta.pk, value)
        for value in values
        if not hasattr(value, "resolve_expression")
    )
    return keys if 0 < len(keys) <= MOST else None


def remember(queryset: "QuerySet[Any]", keys: frozenset[Any], names: Iterable[str]) -> None:
    """Remember an UPDATE that has just changed the rows with these primary keys, and no others."""
    connection: Any = connections[queryset.db]
    if (fate := rollback.current(connection)) is None:
        return
    write = OwnWrite(clock.tick().number, frozenset(names), fate)
    table = queryset.model._version_field.model
    kept: OrderedDict[Any, list[OwnWrite]] = connection.__dict__.setdefault(_KEPT, OrderedDict())
    for key in keys:
        kept[table, key] = [*kept.pop((table, key), ()), write][-MOST:]
    while len(kept) > MOST:
        kept.popitem(last=False)


def since(instance: Instance, using: str) -> list[OwnWrite]:
    """Return the remembered writes of an instance's row that came after it was read or written."""
    connection: Any = connections[using]
    kept = connection.__dict__.get(_KEPT)
    epoch: Epoch | None = instance.__dict__.get("_version_epoch")
    if not kept or epoch is None:
        return []
    table = instance._version_field.model
    key = loaded_state.cleaned(table._meta.pk, instance._version_pk)
    return [
        write
        for write in kept.get((table, key), ())
        if write.epoch > epoch.number and write.fate.pending(connection)
    ]


def merge(
    instance: Instance, names: Iterable[str], row: dict[str, Any]
) -> dict[str, tuple[Any, Any]] | None:
    """Take over what only the row has changed in these fields; None where both have changed one.

    Returns the attributes that took the row's value over, with the values before and after.

    Args:
        instance: the instance, which is changed only if the merge succeeds.
        names: the fields that the own writes have changed.
        row: what the row has, by attribute name.
    """
    state, original = instance.__dict__, loaded_state.original(instance)
    taken = {}
    for name in names:
        field: Any = instance._meta.get_field(name)
        attribute = field.attname
        if attribute not in state or hasattr(state[attribute], "resolve_expression"):
            continue  # nothing of it is written; or it is computed from the row as it is
        mine, theirs = loaded_state.cleaned(field, state[attribute]), row[attribute]
        if mine == theirs:
            continue
        if attribute not in original or mine != original[attribute]:
            return None
        taken[attribute] = (state[attribute], theirs)
    for attribute, (_, theirs) in taken.items():
        loaded_state.assign(instance, attribute, theirs)
    return taken
