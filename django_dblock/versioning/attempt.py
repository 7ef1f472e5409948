"""One save: which version it compares with, and what it sets."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import F, Value
from django.db.models.functions import Greatest
from django.db.models.sql.where import ExtraWhere

from django_dblock.exceptions import MissingVersion, StaleObject
from django_dblock.sql.versioning import VERSION_IS
from django_dblock.versioning import origin as origins
from django_dblock.versioning.bypass import bypassed
from django_dblock.versioning.conflict import conflict
from django_dblock.versioning.field import MAX_VERSION, VersionField

if TYPE_CHECKING:
    from django_dblock.versioning.guarded import GuardedSave

Values = list[tuple[Any, Any, Any]]
"""What Django is about to SET: (field, None, value)."""

Mode = Literal["compare", "bump", "leave"]
"""Compare and bump; only bump, so that the last write wins; leave the version alone."""


@dataclass(slots=True)
class Attempt:
    """What a save does with the version, and how far it has come.

    Attributes:
        mode: see :data:`Mode`.
        expected: the version to compare with, where the caller named one.
        compared: the version it did compare with.
        written: the row has been written.
        conflict: the error this save ends with.
    """

    mode: Mode
    expected: int | None = None
    compared: int | None = None
    written: bool = False
    conflict: StaleObject | None = None

    def failed(self, instance: "GuardedSave", using: str, *, gone: bool) -> StaleObject:
        """Return the error for zero rows."""
        expected = self.compared
        if expected is None:  # a parent's table before the one with the version, or no comparison
            carried = instance.__dict__.get(instance._version_field.attname)
            expected = carried if self.expected is None else self.expected
        self.conflict = conflict(
            instance, expected, using, gone=gone, carried=self.expected is None
        )
        return self.conflict


def plain_save(instance: "GuardedSave") -> Attempt:
    """Return what a ``save()`` does that was not asked for by ``save_cas()``."""
    if bypassed():
        return Attempt("leave")
    return Attempt("compare" if instance.cas_on_save else "bump")


def checked_version(version: object) -> int:
    """Return a version that a row can have; refuse anything else before any SQL."""
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"expected= is a version, a whole number; not {version!r}.")
    if not 0 <= version <= MAX_VERSION:
        raise ValueError(f"expected={version} is not a version: they go from 0 to {MAX_VERSION}.")
    return version


def carried_version(instance: "GuardedSave", using: str) -> int:
    """Return the version that the instance was read with. Never loads it.

    Raises:
        MissingVersion: it carries none, so there is nothing to compare.
        StaleObject: it was written in a transaction that was rolled back.
    """
    state = instance.__dict__
    version = state.get(instance._version_field.attname)
    if (
        instance._state.adding
        or not isinstance(version, int)
        or "_version_alone" in state
        or not origins.same_row(instance)
    ):
        raise MissingVersion(
            model=instance._meta.label, pk=instance.pk, adding=instance._state.adding
        )
    fate = state.get("_version_fate")
    if fate and fate[1] == version and fate[0].rolled_back(connections[fate[0].alias]):
        raise conflict(instance, version, using, rolled_back=True)
    return version


def planned(
    instance: "GuardedSave", attempt: Attempt | None, rows: Any, values: Values, *, new: bool
) -> Values | None:
    """Return what to SET in the table with the version; None where only an INSERT can be right."""
    state, field = instance.__dict__, instance._version_field
    if attempt is None:
        return with_version(values, field, restored(field, state[field.attname]))
    if attempt.mode == "leave":
        return without_version(values, field)
    if attempt.mode == "bump":
        return with_version(values, field, bumped(field))
    if new:
        return None  # never read, so there is nothing to compare: INSERT finds out if it is there
    expected: int = state[field.attname] if attempt.expected is None else attempt.expected
    attempt.compared = expected
    compare(rows, field, expected)
    return with_version(values, field, expected + 1)


def compare(queryset: Any, field: VersionField, expected: int) -> None:
    """Narrow an UPDATE or DELETE to the row with this version.

    The condition goes into the query as it is: what ``filter()`` does for a condition (a clone, a
    look-up, a column and a value that resolve themselves) would be a fifth of the whole save.
    """
    queryset.query.where.add(_VersionIs([_condition(field)], [expected]), "AND")


class _VersionIs(ExtraWhere):
    """Without the parentheses that a condition of unknown make is put into."""

    def as_sql(self, compiler: Any = None, connection: Any = None) -> Any:  # noqa: ARG002
        return self.sqls[0], self.params


@cache
def _condition(field: Any) -> str:
    quote = connections[DEFAULT_DB_ALIAS].ops.quote_name  # all PostgreSQL quotes alike
    return VERSION_IS.format(table=quote(field.model._meta.db_table), version=quote(field.column))


def with_version(values: Values, field: VersionField, version: Any) -> Values:
    """Return what is SET with this version in it, whatever stood there for it."""
    return [*without_version(values, field), (field, None, version)]


def without_version(values: Values, field: VersionField) -> Values:
    """Return what is SET without the version."""
    return [value for value in values if value[0] is not field]


def bumped(field: VersionField) -> Any:
    """Return the row's version plus one, whichever it is."""
    return F(field.name) + 1


def restored(field: VersionField, version: Any) -> Any:
    """Return the version of a fixture, but never one that the row has had before."""
    return Greatest(bumped(field), Value(version, output_field=field))
