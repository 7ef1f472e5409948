"""The picture of a form's conflict: what a form has beside plain columns comes in here."""

from collections.abc import Iterable, Mapping
from typing import Any

from django_dblock.exceptions import StaleObject
from django_dblock.versioning.picture import UNKNOWN, FieldPicture, Picture, conflict_picture


def form_picture(
    error: StaleObject,
    fields: Mapping[str, Any],
    original: Mapping[str, Any],
    cleaned: Mapping[str, Any],
) -> Picture:
    """Return mine, theirs and the original for these model fields of a form.

    One statement, and one more for each many-to-many field, whose values are lists of primary keys.

    Args:
        error: the conflict.
        fields: the model's fields by name.
        original: what the form showed, by field name; what is not in it is unknown.
        cleaned: the form's cleaned data, for the many-to-many fields.
    """
    plain = conflict_picture(error, original=original, fields=fields)
    shown = {}
    for name, field in fields.items():
        if not field.many_to_many:
            shown[name] = plain.fields[name]
            continue
        gone = plain.deleted
        shown[name] = FieldPicture(
            name=name,
            label=str(field.verbose_name),
            original=original.get(name, UNKNOWN),
            mine=keys(cleaned.get(name, ())),
            theirs=UNKNOWN if gone else keys(field.value_from_object(error.instance)),
        )
    return Picture(shown, plain.version)


def keys(objects: Iterable[Any]) -> list[str]:
    """Return the primary keys of objects as text, in order: two equal sets are equal lists."""
    return sorted(str(getattr(each, "pk", each)) for each in objects)
