"""Many compare-and-swaps in one statement."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from django_dblock.sql import versioning as sql
from django_dblock.versioning.save import carried_version, compare

if TYPE_CHECKING:
    from django_dblock.versioning.save import GuardedSave


@dataclass(slots=True)
class Row:
    """One object to write, and the version that its row is expected to have."""

    instance: "GuardedSave"
    expected: int

    def settle(self, using: str, fields: Sequence[Any]) -> None:
        """Carry the written version, and remember the written values."""
        values = [(field, None, getattr(self.instance, field.attname)) for field in fields]
        self.instance._version_settled(self.expected + 1, using, values)


def checked_rows(
    queryset: "QuerySet[Any]", objs: Iterable["GuardedSave"], fields: Sequence[Any]
) -> list[Row]:
    """Return a row for each object, before any SQL.

    Raises:
        TypeError, ValueError: an object can't be written.
        MissingVersion: an object has no version.
        StaleObject: an object carries a version that was rolled back.
    """
    rows: list[Row] = []
    seen = set()
    for instance in objs:
        if not isinstance(instance, queryset.model):
            raise TypeError(f"bulk_save_cas() of {queryset.model._meta.label} got {instance!r}.")
        if not instance._is_pk_set():
            raise ValueError("All bulk_save_cas() objects must have a primary key set.")
        if instance.pk in seen:
            raise ValueError(
                f"{instance._meta.label} with primary key {instance.pk!r} is given twice; "
                f"pass each row once."
            )
        seen.add(instance.pk)
        instance._prepare_related_fields_for_save("bulk_save_cas", fields=fields)
        for field in fields:
            if hasattr(getattr(instance, field.attname), "resolve_expression"):
                raise ValueError(
                    f"bulk_save_cas() writes values, not expressions: {field.name} of "
                    f"{instance._meta.label} {instance.pk!r} is one. Use save_cas() for it, or "
                    f"QuerySet.update()."
                )
        rows.append(Row(instance, carried_version(instance, queryset.db)))
    return rows


def checked_fields(model: type["GuardedSave"], names: Iterable[str]) -> list[Any]:
    """Return the fields to write.

    Raises:
        ValueError: there are no names, or a field is not a plain column.
    """
    fields = [model._meta.get_field(name) for name in names]
    if not fields:
        raise ValueError("Field names must be given to bulk_save_cas().")
    keys = {key for each in (model, *model._meta.all_parents) for key in each._meta.pk_fields}
    keys.update(link for link in model._meta.parents.values() if link)
    for field in fields:
        if not field.concrete or field.many_to_many or field.generated or field in keys:
            raise ValueError(
                f"bulk_save_cas() writes plain columns; {field.name} is a primary key, generated, "
                f"or not a column of its own."
            )
        if _made_of_sql(field):
            raise ValueError(
                f"bulk_save_cas() writes values as they are; {field.name} of {model._meta.label} "
                f"wraps them in SQL of its own (get_placeholder()). Use save_cas()."
            )
        if field is model._version_field:
            raise ValueError(f"{field.name} is bumped anyway; leave it out of the fields.")
    return fields


def _made_of_sql(field: Any) -> bool:
    """Return whether a value reaches the column through SQL of the field, and not as it is."""
    made = getattr(field, "get_placeholder", None) or getattr(field, "get_placeholder_sql", None)
    return made is not None and not made.__module__.startswith(
        ("django.db.models.fields", "django.contrib.postgres.fields")
    )


def parameters_per_row(model: type["GuardedSave"], fields: Sequence[Any]) -> list[Any]:
    """Return as many fields as one row has parameters, for Django to compute the batch size."""
    version = model._version_field
    others = [version] * len(model._meta.all_parents)
    return [version, *version.model._meta.pk_fields, version, *others, *fields]


def write(queryset: "QuerySet[Any]", rows: Sequence[Row], fields: Sequence[Any]) -> set[int]:
    """Write the rows that have their versions; return their places in ``rows``."""
    connection = connections[queryset.db]
    version = queryset.model._version_field
    if type(queryset)._update is not QuerySet._update:  # type: ignore[attr-defined]
        return _write_one_by_one(queryset, rows, fields)
    try:
        among, more = _among(queryset, connection)
    except EmptyResultSet:
        return set()
    own = [field for field in fields if field.model is version.model]
    keys = version.model._meta.pk_fields
    others = _others(queryset, fields)
    other_keys = [model._meta.pk for model in others]
    statement = sql.save(
        table=connection.ops.quote_name(version.model._meta.db_table),
        keys=_columns(connection, keys),
        version=connection.ops.quote_name(version.column),
        columns=_columns(connection, own),
        types=["integer", *_types(connection, [*keys, version, *other_keys, *own])],
        count=len(rows),
        others=[
            (connection.ops.quote_name(model._meta.db_table), column)
            for model, column in zip(others, _columns(connection, other_keys), strict=True)
        ],
        among=among,
    )
    given = [
        value
        for at, row in enumerate(rows)
        for value in (
            at,
            *_values(connection, row, keys),
            row.expected,
            *_values(connection, row, [*other_keys, *own]),
        )
    ]
    written = _send(connection, statement, [*given, *more])
    fresh = [rows[at] for at in sorted(written)]
    for model in others:
        theirs = [field for field in fields if field.model is model]
        if theirs and fresh:
            _write_rest(connection, model, theirs, fresh)
    return written


def _write_one_by_one(
    queryset: "QuerySet[Any]", rows: Sequence[Row], fields: Sequence[Any]
) -> set[int]:
    """Write each row through the queryset's own ``_update()``, which may write other columns.

    modeltranslation's writes the column of the present language. In the order of the primary keys,
    so that two calls lock the rows in the same order.
    """
    model, version = queryset.model, queryset.model._version_field
    if model._meta.concrete_model._meta.parents:
        raise TypeError(
            f"bulk_save_cas() can't write {model._meta.label}: its querysets have an _update() of "
            f"their own, which writes one table only. Use save_cas()."
        )
    among = queryset
    if queryset.query.is_sliced:
        among = model._default_manager.using(queryset.db).filter(pk__in=queryset.values("pk"))
    written = set()
    for at in sorted(range(len(rows)), key=lambda at: rows[at].instance.pk):
        instance, expected = rows[at].instance, rows[at].expected
        row: Any = among.filter(pk=instance.pk)
        compare(row, version, expected)
        values = [(field, None, getattr(instance, field.attname)) for field in fields]
        if row._update([*values, (version, None, expected + 1)]):
            written.add(at)
    return written


def _others(queryset: "QuerySet[Any]", fields: Sequence[Any]) -> list[Any]:
    """Return the models of the other tables that an object has a part in.

    Always in the same order, so that two calls lock the tables in the same order.
    """
    found = {queryset.model._meta.concrete_model, *(field.model for field in fields)}
    found.discard(queryset.model._version_field.model)
    return sorted(found, key=lambda model: str(model._meta.label))


def _write_rest(
    connection: BaseDatabaseWrapper, model: Any, fields: Sequence[Any], rows: Sequence[Row]
) -> None:
    keys = model._meta.pk_fields
    statement = sql.save_rest(
        table=connection.ops.quote_name(model._meta.db_table),
        keys=_columns(connection, keys),
        columns=_columns(connection, fields),
        types=["integer", *_types(connection, [*keys, *fields])],
        count=len(rows),
    )
    _send(
        connection,
        statement,
        [
            value
            for at, row in enumerate(rows)
            for value in (at, *_values(connection, row, [*keys, *fields]))
        ],
    )


def _among(
    queryset: "QuerySet[Any]", connection: BaseDatabaseWrapper
) -> tuple[str, tuple[Any, ...]]:
    """Return the condition that limits a statement to the rows of a filtered queryset."""
    if not queryset.query.where and not queryset.query.is_sliced:
        return "", ()
    keys = queryset.model._version_field.model._meta.pk_fields
    rows = queryset.order_by() if not queryset.query.is_sliced else queryset
    rows = rows.values_list(*[key.attname for key in keys])
    inner, parameters = rows.query.get_compiler(connection.alias).as_sql()
    names = ", ".join(f"target.{column}" for column in _columns(connection, keys))
    return f" AND ({names}) IN ({inner})", parameters


def _columns(connection: BaseDatabaseWrapper, fields: Iterable[Any]) -> list[str]:
    return [connection.ops.quote_name(field.column) for field in fields]


def _types(connection: BaseDatabaseWrapper, fields: Iterable[Any]) -> list[str]:
    """Return the columns' types without their lengths: a cast to ``varchar(3)`` cuts silently."""
    types = [re.sub(r"\([^)]*\)", "", field.db_type(connection)) for field in fields]
    return [_ONE_LONG.sub(lambda found: _ANY_LENGTH[found[0].lower()], each) for each in types]


# Without a length these types have the length 1, so a cast would cut all the more.
_ANY_LENGTH: Final = {"char": "bpchar", "character": "bpchar", "bit": "varbit"}
_ONE_LONG: Final = re.compile(r"^(char|character|bit)(?=\[|$)", re.IGNORECASE)


def _values(connection: BaseDatabaseWrapper, row: Row, fields: Iterable[Any]) -> list[Any]:
    return [
        field.get_db_prep_save(getattr(row.instance, field.attname), connection) for field in fields
    ]


def _send(connection: BaseDatabaseWrapper, statement: str, parameters: list[Any]) -> set[int]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return {at for (at,) in cursor.fetchall()}
