"""The diff of a conflict: mine, theirs, and the original of each field."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from django_dblock.exceptions import StaleObject
from django_dblock.versioning.loaded_state import differ, original, set_by_save
from django_dblock.versioning.save import unversioned_names


class Unknown(Enum):
    """The type of :data:`UNKNOWN`."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""The value in a diff that is not known: not read, or computed by the database."""


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """One field of a conflict.

    Attributes:
        name: the field's name.
        label: the field's readable name.
        original: its value when the row was read, or ``UNKNOWN``.
        mine: the value that was not written.
        theirs: the value in the row now; ``UNKNOWN`` if the row was deleted.
        counts: whether the user decides the value. False for a field that each save sets by itself
            (``auto_now``) and for an ``unversioned`` field. Such a field never counts as changed by
            me, and never conflicts.
    """

    name: str
    label: str
    original: Any
    mine: Any
    theirs: Any
    counts: bool = True

    @property
    def changed_by_me(self) -> bool:
        """Return whether mine differs from the original; if that is unknown, from theirs."""
        before = self.theirs if self.original is UNKNOWN else self.original
        return self.counts and differ(self.mine, before)

    @property
    def changed_by_them(self) -> bool:
        """Return whether theirs differs from the original; if that is unknown, from mine."""
        return differ(self.theirs, self.mine if self.original is UNKNOWN else self.original)

    @property
    def conflicting(self) -> bool:
        """Return whether both changed the field, and not to the same value."""
        return self.changed_by_me and self.changed_by_them and differ(self.mine, self.theirs)


@dataclass(frozen=True, slots=True)
class ConflictDiff:
    """All fields of a conflict.

    Attributes:
        fields: by name, in the model's order.
        version: the version of ``theirs``; None if the row was deleted.
    """

    fields: Mapping[str, FieldDiff]
    version: int | None

    @property
    def deleted(self) -> bool:
        """Return whether the row was deleted."""
        return self.version is None

    @property
    def conflicting(self) -> list[FieldDiff]:
        """Return the fields that both changed; without any, mine can be merged into theirs."""
        return [field for field in self.fields.values() if field.conflicting]


def conflict_diff(
    error: StaleObject,
    *,
    original: Mapping[str, Any] | None = None,
    fields: Iterable[str] | None = None,
) -> ConflictDiff:
    """Return mine, theirs and the original of a conflict, for each field that was loaded.

    One statement reads the present row, which may be newer than ``error.actual``. Compare the next
    save with the diff's ``version``.

    Args:
        error: the conflict.
        original: the original values by field name, if the instance is not the object that was read
            at the start, as in a posted form; by default the values that the instance was read
            with.
        fields: the names of the fields to show; by default all but the primary key and the version.
    """
    instance = error.instance
    known = _by_name(instance) if original is None else original
    row = type(instance)._base_manager.using(error.using).filter(pk=error.pk).first()
    if row is None:
        return _diff(instance, known, fields, None, None)
    version: int = getattr(row, row._version_field.attname)
    return _diff(instance, known, fields, row.__dict__, version)


def _diff(
    instance: Any,
    known: Mapping[str, Any],
    fields: Iterable[str] | None,
    row: Mapping[str, Any] | None,
    version: int | None,
) -> ConflictDiff:
    """Return the diff with a row; ``row`` has the row's values by attribute name."""
    wanted = None if fields is None else set(fields)
    meta = instance._meta
    shown = {
        field.name: FieldDiff(
            name=field.name,
            label=str(field.verbose_name),
            original=_value(field, known.get(field.name, UNKNOWN)),
            mine=_value(field, instance.__dict__[field.attname]),
            theirs=UNKNOWN if row is None else row[field.attname],
            counts=counts(type(instance), field),
        )
        for field in meta.concrete_fields
        if field.attname in instance.__dict__
        and not (field is instance._version_field or field.primary_key or field in meta.pk_fields)
        and (wanted is None or field.name in wanted)
    }
    return ConflictDiff(shown, version)


def counts(model: Any, field: Any) -> bool:
    """Return whether the user decides the value of a field."""
    if field.name in unversioned_names(model):
        return False
    return not (set_by_save(field) or getattr(field, "auto_now_add", False))


def _by_name(instance: Any) -> dict[str, Any]:
    known = original(instance)
    return {
        field.name: known[field.attname]
        for field in instance._meta.concrete_fields
        if field.attname in known
    }


def _value(field: Any, value: Any) -> Any:
    """Return a value as a read row would have it, so that 1 and "1" don't differ."""
    if value is UNKNOWN or hasattr(value, "resolve_expression"):
        return UNKNOWN
    try:
        return field.to_python(value)
    except Exception:  # noqa: BLE001 - show an invalid value unchanged
        return value


# The diff of a form's conflict, with the many-to-many fields of the form.


def form_diff(
    error: StaleObject,
    fields: Mapping[str, Any],
    original: Mapping[str, Any],
    cleaned: Mapping[str, Any],
    row: tuple[Mapping[str, Any], int] | None = None,
) -> ConflictDiff:
    """Return mine, theirs and the original for these model fields of a form.

    One statement, unless the row is given, and one more for each many-to-many field, whose values
    are lists of primary keys.

    Args:
        error: the conflict.
        fields: the model's fields by name.
        original: the values that the form showed, by field name; other values are unknown.
        cleaned: the form's cleaned data, for the many-to-many fields.
        row: the row's values by attribute name, and the row's version, if both were just read.
    """
    if row is None:
        plain = conflict_diff(error, original=original, fields=fields)
    else:
        plain = _diff(error.instance, original, fields, *row)
    shown = {}
    for name, field in fields.items():
        if not field.many_to_many:
            shown[name] = plain.fields[name]
            continue
        gone = plain.deleted
        shown[name] = FieldDiff(
            name=name,
            label=str(field.verbose_name),
            original=original.get(name, UNKNOWN),
            mine=keys(cleaned.get(name, ())),
            theirs=UNKNOWN if gone else keys(field.value_from_object(error.instance)),
        )
    return ConflictDiff(shown, plain.version)


def keys(objects: Iterable[Any]) -> list[str]:
    """Return the primary keys of objects as text, in order: two equal sets are equal lists."""
    return sorted(str(getattr(each, "pk", each)) for each in objects)
