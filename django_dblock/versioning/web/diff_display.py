"""The values of a conflict as text for people."""

import datetime as dt
import decimal
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.utils import formats
from django.utils.text import capfirst
from django.utils.timezone import template_localtime  # type: ignore[attr-defined]
from django.utils.translation import gettext as _

from django_dblock.versioning.web.diff import UNKNOWN, ConflictDiff, FieldDiff


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table that shows a conflict; all values are text, not yet escaped.

    Attributes:
        name: the field's name.
        label: its name for people.
        original: what the form showed.
        mine: what was sent, and not written.
        theirs: what is in the row now.
        mine_changed: the sender changed it.
        theirs_changed: somebody else changed it.
        conflicting: both changed the field, and not to the same value.
        upload: a file, which a browser doesn't send twice.
        choice: the name of the input with which theirs is chosen.
    """

    name: str
    label: str
    original: str
    mine: str
    theirs: str
    mine_changed: bool
    theirs_changed: bool
    conflicting: bool
    upload: bool
    choice: str


def rows(
    diff: ConflictDiff,
    fields: Mapping[str, Any],
    labels: Mapping[str, Any],
    choices: Mapping[str, str],
) -> list[Row]:
    """Return a row for each field of a diff; one statement for each that is a relation.

    Args:
        diff: the conflict.
        fields: the model's fields by name.
        labels: the labels of the form; if one is empty, the name from the model is used.
        choices: the names of the inputs to choose with.
    """
    found = []
    for name, each in diff.fields.items():
        original, mine, theirs = _shown(fields[name], each)
        found.append(
            Row(
                name=name,
                label=capfirst(str(labels.get(name) or each.label)),
                original=original,
                mine=mine,
                theirs=theirs,
                mine_changed=each.changed_by_me,
                theirs_changed=each.changed_by_them and not diff.deleted,
                conflicting=each.conflicting and not diff.deleted,
                upload=isinstance(fields[name], models.FileField),
                choice=choices[name],
            )
        )
    return found


def _shown(field: Any, each: FieldDiff) -> list[str]:
    values = [each.original, each.mine, each.theirs]
    if field.is_relation:
        names = _names(field, values)
        return [_related(names, value) for value in values]
    return [readable(field, value) for value in values]


def _names(field: Any, values: Iterable[Any]) -> dict[str, str]:
    """Return what the related objects are called, by their keys' text."""
    wanted = set()
    for value in values:
        wanted |= {*value} if isinstance(value, list) else {value} - {None, UNKNOWN}
    key = "pk" if field.many_to_many else field.target_field.attname
    found = field.remote_field.model._base_manager.filter(**{f"{key}__in": wanted})
    return {str(getattr(each, key)): str(each) for each in found}


def _related(names: Mapping[str, str], value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(names.get(each, each) for each in value) or _("(empty)")
    if value is None or value is UNKNOWN:
        return _plain(value)
    return names.get(str(value), str(value))


def readable(field: Any, value: Any) -> str:
    """Return a column's value as a person would write it, in the language of the request."""
    choices = getattr(field, "flatchoices", None)
    if choices and value is not UNKNOWN:
        for key, name in choices:
            if key == value:
                return str(name)
    if isinstance(value, decimal.Decimal):
        return formats.number_format(value, getattr(field, "decimal_places", None))
    if isinstance(field, models.JSONField) and value is not UNKNOWN:
        return json.dumps(value, ensure_ascii=False, indent=2, cls=field.encoder)
    return _plain(value)


def _plain(value: Any) -> str:
    if value is UNKNOWN:
        return _("(not known)")
    if value is None:
        return _("(empty)")
    if isinstance(value, bool):
        return _("Yes") if value else _("No")
    if isinstance(value, list | tuple):
        value = ", ".join(map(_plain, value))
    elif isinstance(value, dt.datetime):
        value = formats.localize(template_localtime(value))
    elif isinstance(value, dt.date | dt.time | int | float):
        value = formats.localize(value)
    return str(value) or _("(empty)")
