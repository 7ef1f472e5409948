"""The values of an instance's row when it was last read or written: a conflict's original."""

import copy
import datetime as dt
import decimal
import uuid
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.fields.files import FieldFile

from django_dblock.versioning.field import VersionField

if TYPE_CHECKING:
    from django.db.models import Model

_ORIGIN: Final = "_version_origin"

_IMMUTABLE: Final = frozenset({
    type(None), bool, int, float, complex, str, bytes, memoryview, decimal.Decimal,
    dt.date, dt.datetime, dt.time, dt.timedelta, uuid.UUID,
})  # fmt: skip

# Django's fields whose values from the database are always of an immutable type. A subclass is
# not among them: its from_db_value() may return anything.
_IMMUTABLE_FIELDS: Final = frozenset({
    VersionField,
    models.AutoField, models.BigAutoField, models.SmallAutoField,
    models.BigIntegerField, models.IntegerField, models.SmallIntegerField,
    models.PositiveBigIntegerField, models.PositiveIntegerField, models.PositiveSmallIntegerField,
    models.BinaryField, models.BooleanField, models.DecimalField, models.FloatField,
    models.CharField, models.EmailField, models.SlugField, models.TextField, models.URLField,
    models.DateField, models.DateTimeField, models.DurationField, models.TimeField,
    models.FileField, models.ImageField, models.FilePathField, models.UUIDField,
    models.GenericIPAddressField, models.ForeignKey, models.OneToOneField,
})  # fmt: skip


class _NotKnown:
    """The original of a value that could not be copied."""


_NOT_KNOWN: Final = _NotKnown()


def original(instance: "Model") -> dict[str, Any]:
    """Return the values last read or written, by attribute name; unknown ones are left out."""
    kept = instance.__dict__.get(_ORIGIN, {})
    return kept if isinstance(kept, dict) else dict(zip(*kept, strict=True))


def loaded(instance: "Model", names: Any, values: Any) -> None:
    """Remember the arguments of ``from_db()``: the names of the attributes and their values."""
    # The instance holds the same objects, so objects that can change in place are copied. Most
    # models have no such field, and pay for one look into a cache.
    kept: Any = (names, values)
    if mutable := _mutable_attributes(type(instance)):
        copies = {
            name: _copy(value) if name in mutable else value
            for name, value in zip(names, values, strict=True)
        }
        kept = {name: value for name, value in copies.items() if value is not _NOT_KNOWN}
    instance.__dict__[_ORIGIN] = kept


def written(instance: "Model", values: Iterable[tuple[Any, Any, Any]]) -> None:
    """Remember the values that an UPDATE has written: (field, None, value), as in Django."""
    kept = dict(original(instance))  # not changed in place: a copy of the instance may share it
    for field, _, value in values:
        # Only the database knows the result of an expression.
        known = _NOT_KNOWN if hasattr(value, "resolve_expression") else _copy(value)
        if known is _NOT_KNOWN:
            kept.pop(field.attname, None)
        else:
            kept[field.attname] = known
    instance.__dict__[_ORIGIN] = kept


def with_returned(values: Iterable[Any], rows: Any, fields: Iterable[Any]) -> list[Any]:
    """Return what an UPDATE has written, with the values that it has returned after expressions.

    Args:
        values: the written values: (field, None, value).
        rows: the rows that the UPDATE has returned; an empty row if nothing was sent.
        fields: the fields whose values only the database knows, as Django names them from 6.0 on.
    """
    returned = [(field, None, value) for field, value in zip(fields, rows[0], strict=False)]
    return [*values, *returned]


def snapshot(instance: "Model", fields: Iterable[Any]) -> None:
    """Remember the instance's values of these fields, which are the row's values."""
    state = instance.__dict__
    known = [field for field in fields if field.attname in state]
    written(instance, [(field, None, state[field.attname]) for field in known])


def assign(instance: Any, attribute: str, value: Any) -> None:
    """Set an attribute as if the row had been read so; forget the object of another foreign key."""
    field = instance._meta.get_field(attribute)
    if field.is_relation and field.is_cached(instance):
        field.delete_cached_value(instance)
    instance.__dict__[attribute] = value


def is_same_row(instance: Any) -> bool:
    """Return whether the primary key is still that of the row whose version is carried."""
    kept = instance.__dict__.get(_ORIGIN)
    if kept is None:
        return True
    state = instance.__dict__
    model: Any = type(instance)
    for key in key_fields(model):
        name = key.attname
        if isinstance(kept, dict):
            known = kept.get(name)
        else:
            names, values = kept
            known = values[names.index(name)] if name in names else None
        now = state.get(name)
        if known is not None and known != now and known != cleaned(key, now):
            return False
    return True


def links_agree(instance: Any) -> bool:
    """Return whether each known link to a parent's row names the parent's key.

    After ``child.pk = other`` the link does not: Django's ``delete()`` would take the row of the
    link, and its ``save()`` that of the parent's key.
    """
    state = instance.__dict__
    for link in instance._meta.concrete_model._meta.parents.values():
        if link is not None and link.attname in state:
            key = link.target_field.attname
            if state.get(key, state[link.attname]) != state[link.attname]:
                return False
    return True


@cache
def key_fields(model: Any) -> tuple[Any, ...]:
    """Return the primary keys that identify an instance's rows: its own, and the version's."""
    concrete = model._meta.concrete_model._meta
    keys = dict.fromkeys([*concrete.pk_fields, *model._version_field.model._meta.pk_fields])
    return tuple(keys)


def cleaned(field: Any, value: Any) -> Any:
    """Return a value as a read row would have it; None if the field refuses the value."""
    try:
        return field.to_python(value)
    except ValidationError:
        return None


def set_by_save(field: Any) -> bool:
    """Return whether each save sets a field by itself, in ``pre_save()``.

    Django's dates with ``auto_now`` do, and fields of other packages that can't be edited and have
    a ``pre_save()`` of their own.
    """
    if getattr(field, "auto_now", False):
        return True
    djangos = type(field).pre_save.__module__.startswith("django.db.models.")
    return not (field.editable or djangos)


def differ(one: Any, other: Any) -> bool:
    """Return whether two values of a field differ, also arrays, as pgvector returns them."""
    try:
        return bool(one != other)
    except ValueError:  # NumPy compares each element, and only arrays of one shape
        if getattr(one, "shape", None) != getattr(other, "shape", None):
            return True
        return bool((one != other).any())


@cache
def _mutable_attributes(model: Any) -> frozenset[str]:
    return frozenset(
        field.attname
        for field in model._meta.concrete_fields
        if type(field) not in _IMMUTABLE_FIELDS
    )


def _copy(value: Any) -> Any:
    """Return a copy of a value, which later changes in place don't affect."""
    if type(value) in _IMMUTABLE:
        return value
    if isinstance(value, FieldFile):
        return value.name
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - objects of any class; saving must not fail because of them
        return _NOT_KNOWN
