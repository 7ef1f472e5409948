"""Rows that the open transaction has changed without the instance, as by ``QuerySet.update()``.

``parent.children.add(child)`` and ``Child.objects.filter(pk=child.pk).update(…)`` bump the row, but
not the instance ``child`` in memory. The next ``save()`` of ``child`` finds another version,
although no other transaction has written the row.

This module recognises that case by counting. It remembers each UPDATE whose rows are known exactly
(the query names their primary keys, and that many rows were changed), as long as the UPDATE's
transaction is open. At a conflict it counts the remembered UPDATEs since the instance was read or
written. Versions grow by one with each write. So if the row's version is higher by exactly that
number, this transaction made all the writes in between. If the version is higher by more, another
writer has written the row, and that is a conflict. A write that is not remembered, or was rolled
back, is not counted; that can only lead to an unnecessary conflict, never to a lost update.

Then the rule of a three-way merge applies: fields that only the UPDATE has changed are taken over
into the instance. Fields that both have changed, and not to the same value, are a conflict.

After COMMIT the difference is an ordinary conflict. The writes could still be counted, but a thread
serves many users one after the other, and one user has not seen what another user has written.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from django.db import connections
from django.db.models.expressions import Col, ColPairs
from django.db.models.lookups import Exact, In

from django_dblock.versioning import loaded_state, rollback
from django_dblock.versioning.rollback import Instance

if TYPE_CHECKING:
    from django.db.models import QuerySet

MOST: Final = 1000
"""Rows that a connection remembers, and rows of one UPDATE that are remembered."""

_KEPT: Final = "_dblock_own_writes"


class Epoch:
    """The time between two remembered writes of this process; an instance belongs to one epoch."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Return an epoch after all writes of the process that unpickles, so that none counts."""
        return Epoch, (float("inf"),)


@dataclass(slots=True)
class OwnWrite:
    """One UPDATE of one row.

    Attributes:
        epoch: the number of the epoch that began with the UPDATE.
        names: the written fields, without the version.
        fate: the UPDATE's transaction or savepoint.
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
        """Begin the next epoch. A mutex keeps an epoch that has ended from being returned again."""
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
        if isinstance(condition, Exact | In) and isinstance(condition.lhs, Col | ColPairs):
            columns = condition.lhs
            key = columns.target if isinstance(columns, Col) else columns.field
            # The same table may be joined once more: the key of a child, a neighbour, an ancestor.
            updated = columns.alias == query.base_table and key in targets
            values = [condition.rhs] if isinstance(condition, Exact) else condition.rhs
            if updated and isinstance(values, list | tuple | set):
                return _keys(version_model, values)
    return None


def _keys(model: Any, values: Iterable[Any]) -> frozenset[Any] | None:
    keys = frozenset(
        rollback.row_key(model, value)
        for value in values
        if not hasattr(value, "resolve_expression")
    )
    return keys if 0 < len(keys) <= MOST else None


def wrote(
    queryset: "QuerySet[Any]", keys: frozenset[Any] | None, names: Iterable[str], count: int
) -> None:
    """Remember an UPDATE that has just changed rows.

    Args:
        queryset: the queryset that was updated.
        keys: the primary keys that the query names; None if it names none.
        names: the written fields, without the version.
        count: how many rows were changed.
    """
    connection: Any = connections[queryset.db]
    if (fate := rollback.current(connection)) is None:
        return
    table = queryset.model._version_field.model
    rollback.wrote(fate, connection, table, keys)
    if keys is None or count != len(keys):
        return
    write = OwnWrite(clock.tick().number, frozenset(names), fate)
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
    key = rollback.row_key(table, instance._version_pk)
    return [
        write
        for write in kept.get((table, key), ())
        if write.epoch > epoch.number and write.fate.pending(connection)
    ]


def merge(
    instance: Instance, names: Iterable[str], row: dict[str, Any]
) -> dict[str, tuple[Any, Any]] | None:
    """Take over the fields that changed only in the row.

    Returns:
        The attributes that took over the row's value, with the values before and after; None if the
        row and the instance have changed the same field.

    Args:
        instance: the instance, which is changed only if the merge succeeds.
        names: the fields that the own writes have changed.
        row: the row's values, by attribute name.
    """
    state, original = instance.__dict__, loaded_state.original(instance)
    taken = {}
    for name in names:
        field: Any = instance._meta.get_field(name)
        attribute = field.attname
        if attribute not in state or hasattr(state[attribute], "resolve_expression"):
            continue  # the save does not write the field, or computes its value from the row
        mine, theirs = loaded_state.cleaned(field, state[attribute]), row[attribute]
        if not loaded_state.differ(mine, theirs):
            continue
        if attribute not in original or loaded_state.differ(mine, original[attribute]):
            if loaded_state.set_by_save(field):
                continue  # not by its user
            return None
        taken[attribute] = (state[attribute], theirs)
    for attribute, (_, theirs) in taken.items():
        loaded_state.assign(instance, attribute, theirs)
    return taken
