"""The values of a conflict as readable text."""

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
        label: the field's readable name.
        original: the value that the form showed.
        mine: the value that was sent and not written.
        theirs: the value in the row now.
        mine_changed: the user changed the field.
        theirs_changed: another writer changed the field.
        conflicting: both changed the field, and not to the same value.
        upload: the field is a file, which a browser does not send twice.
        choice: the name of the input that chooses ``theirs``.
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
    instance: models.Model,
) -> list[Row]:
    """Return a row for each field of a diff; one statement for each relation.

    Args:
        diff: the conflict.
        fields: the model's fields by name.
        labels: the labels of the form; for an empty label, the field's name in the model is used.
        choices: the names of the inputs that choose ``theirs``.
        instance: the object of the conflict, whose database has the related objects.
    """
    table = []
    for name, field in diff.fields.items():
        original, mine, theirs = _shown(fields[name], field, instance)
        table.append(
            Row(
                name=name,
                label=capfirst(str(labels.get(name) or field.label)),
                original=original,
                mine=mine,
                theirs=theirs,
                mine_changed=field.changed_by_me,
                theirs_changed=field.changed_by_them and not diff.deleted,
                conflicting=field.conflicting and not diff.deleted,
                upload=isinstance(fields[name], models.FileField),
                choice=choices[name],
            )
        )
    return table


def _shown(field: Any, diff: FieldDiff, instance: models.Model) -> list[str]:
    values = [diff.original, diff.mine, diff.theirs]
    if field.is_relation:
        names = _names(field, values, instance)
        return [_related(names, value) for value in values]
    return [readable(field, value) for value in values]


def _names(field: Any, values: Iterable[Any], instance: models.Model) -> dict[str, str]:
    """Return the names of the related objects, by their keys' text."""
    wanted = set()
    for value in values:
        wanted |= {*value} if isinstance(value, list) else {value} - {None, UNKNOWN}
    key = "pk" if field.many_to_many else field.target_field.attname
    related = field.remote_field.model._base_manager.db_manager(hints={"instance": instance})
    found = related.filter(**{f"{key}__in": wanted})
    return {str(getattr(each, key)): str(each) for each in found}


def _related(names: Mapping[str, str], value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(names.get(each, each) for each in value) or _("(empty)")
    if value is None or value is UNKNOWN:
        return _plain(value)
    return names.get(str(value), str(value))


def readable(field: Any, value: Any) -> str:
    """Return a column's value as readable text, in the language of the request."""
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
