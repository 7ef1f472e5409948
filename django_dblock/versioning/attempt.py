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
from django_dblock.versioning.bypass import bypassed
from django_dblock.versioning.conflict import conflict
from django_dblock.versioning.field import MAX_VERSION, VersionField

if TYPE_CHECKING:
    from django_dblock.versioning.model import VersionedModel

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
        written: the row has been written.
        before: what the instance carried until then.
        conflict: the error this save ends with.
    """

    mode: Mode
    expected: int | None = None
    written: bool = False
    before: int | None = None
    conflict: StaleObject | None = None

    def failed(self, instance: "VersionedModel", using: str, *, gone: bool) -> StaleObject:
        """Return the error for zero rows, after putting the version back."""
        state, name = instance.__dict__, instance._version_field.attname
        if self.written:  # a child's table after its parent's: neither stays
            state[name] = self.before
        expected = state.get(name) if self.expected is None else self.expected
        self.conflict = conflict(instance, expected, using, gone=gone)
        return self.conflict


def plain_save(instance: "VersionedModel") -> Attempt:
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


def carried_version(instance: "VersionedModel", using: str) -> int:
    """Return the version that the instance was read with. Never loads it.

    Raises:
        MissingVersion: it carries none, so there is nothing to compare.
        StaleObject: it was written in a transaction that was rolled back.
    """
    state = instance.__dict__
    version = state.get(instance._version_field.attname)
    if instance._state.adding or not isinstance(version, int) or "_version_alone" in state:
        raise MissingVersion(
            model=instance._meta.label, pk=instance.pk, adding=instance._state.adding
        )
    fate = state.get("_version_fate")
    if fate and fate[1] == version and fate[0].rolled_back(connections[using]):
        raise conflict(instance, version, using, rolled_back=True)
    return version


def compare(queryset: Any, field: VersionField, expected: int) -> None:
    """Narrow an UPDATE or DELETE to the row with this version.

    The condition goes into the query as it is: what ``filter()`` does for a condition (a clone, a
    look-up, a column and a value that resolve themselves) would be a fifth of the whole save.
    """
    queryset.query.where.add(ExtraWhere([_condition(field)], [expected]), "AND")


@cache
def _condition(field: VersionField) -> str:
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
