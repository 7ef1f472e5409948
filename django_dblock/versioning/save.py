"""One save: which version it compares with, and what it sets."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from django.db import DEFAULT_DB_ALIAS, connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Value
from django.db.models.functions import Greatest
from django.db.models.sql.where import ExtraWhere

from django_dblock.exceptions import MissingVersion, StaleObject
from django_dblock.signals import stale_object
from django_dblock.sql.versioning import VERSION_IS
from django_dblock.versioning import loaded_state, rollback
from django_dblock.versioning.bypass import bypassed
from django_dblock.versioning.field import MAX_VERSION, VersionField

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
        or not loaded_state.same_row(instance)
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


# The seam to Django: what of ``Model.save()`` is overridden, and nothing copied.
#
# ``save()`` calls ``save_base()``, which sends the signals and opens what a table needs, and then
# for each table ``_do_update()``, and ``_do_insert()`` if that has written no row. The last two are
# private; ``tests/versioning/test_seam.py`` pins their signatures on each version of Django. A
# fixture calls Django's own ``save_base()``, past ours: without an attempt it is a fixture.


# What is being saved here, and how: by this thread or task, also if others save the same instance.
_saving: ContextVar[tuple[Any, Attempt | None]] = ContextVar(
    "django_dblock_saving", default=(None, None)
)


class GuardedSave(models.Model):
    """Saves that compare. The state of one is on the instance, in ``_version_*``."""

    cas_on_save: ClassVar[bool] = True
    _version_field: ClassVar[Any]  # a VersionField, which type checkers would take for its value
    _version_asked: Attempt
    _version_alone: bool

    class Meta:  # noqa: D106
        abstract = True

    if TYPE_CHECKING:

        def _is_pk_set(self, meta: Any = None) -> bool: ...

    def save_base(
        self,
        raw: bool = False,  # noqa: FBT001, FBT002 - Django's signature
        force_insert: Any = False,  # noqa: FBT002
        force_update: bool = False,  # noqa: FBT001, FBT002
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Save with an attempt; if it ends in a conflict, undo only what Django did about it."""
        using = using or router.db_for_write(type(self), instance=self)
        state = self.__dict__
        attempt = None if raw else state.pop("_version_asked", None) or plain_save(self)
        if attempt and attempt.mode == "compare" and attempt.expected is None:
            updates = not self._state.adding and self._is_pk_set() and not force_insert
            if updates or force_update or update_fields:
                carried_version(self, using)
        connection = connections[using]
        usable = connection.in_atomic_block and not connection.needs_rollback
        model: Any = self._meta.concrete_model  # a proxy's own names its model as a parent
        tables = Tables(self, connection, usable=usable) if model._meta.parents else None
        saving = _saving.set((self, attempt))
        try:
            super().save_base(
                raw=raw,
                force_insert=force_insert,
                force_update=force_update,
                using=using,
                update_fields=update_fields,
            )
        except BaseException as error:
            stale = attempt is not None and error is attempt.conflict
            if stale and usable:
                connection.set_rollback(False)
            if tables:
                tables.failed(stale=stale)
            raise
        else:
            if tables:
                tables.saved()
        finally:
            _saving.reset(saving)

    def delete(  # type: ignore[override]
        self, using: str | None = None, **options: Any
    ) -> tuple[int, dict[str, int]]:
        """As Django's; compare, where a form or the admin has bound it to what it showed."""
        pk, version = self.__dict__.pop("_version_delete", (None, None))
        if version is None or pk != self.pk:
            return super().delete(using=using, **options)
        try:
            return self.delete_cas(expected=version, using=using)  # type: ignore[attr-defined, no-any-return]
        except BaseException:
            self.__dict__["_version_delete"] = (pk, version)
            raise

    @property
    def _version_pk(self) -> Any:
        """The primary key in the table with the version; with two parents, not that of the row."""
        return self._get_pk_val(self._version_field.model._meta)

    @classmethod
    def from_db(cls, db: str | None, field_names: Any, values: Any, **more: Any) -> Self:
        """Keep what was read: it is the original, should this end in a conflict."""
        instance = super().from_db(db, field_names, values, **more)
        instance.__dict__["_version_origin"] = (field_names, values)
        return instance

    def refresh_from_db(  # type: ignore[override]
        self, using: str | None = None, fields: Iterable[str] | None = None, **more: Any
    ) -> None:
        """Read again. A version read alone, without the rest, is not one to compare with."""
        names = None if fields is None else set(fields)
        state, name = self.__dict__, self._version_field.attname
        unloaded = names is None and name not in state  # Django would leave it so
        if unloaded:
            state[name] = None
        try:
            super().refresh_from_db(using, names, **more)
        except BaseException:
            if unloaded:
                del state[name]
            raise
        loaded = [field for field in self._meta.concrete_fields if field.attname in state]
        read = [
            field
            for field in loaded
            if names is None or field.name in names or field.attname in names
        ]
        loaded_state.snapshot(self, read)
        if self._version_field in read:
            state.pop("_version_fate", None)
            state.pop("_version_alone", None)
            keys = self._meta.pk_fields
            if any(not (each in read or each in keys or each.primary_key) for each in loaded):
                self._version_alone = True

    def _do_update(  # type: ignore[override]  # noqa: PLR0913, PLR0917 - Django's signature
        self,
        base_qs: Any,
        using: str,
        pk_val: Any,
        values: Values,
        update_fields: Any,
        forced_update: Any,
        *args: Any,
        **more: Any,
    ) -> Any:
        """Let the UPDATE compare and bump; raise where Django would go on to INSERT.

        What Django's own returns goes through untouched: a bool on 5.2, the returned rows later.
        """
        instance, attempt = _saving.get()
        if instance is not self:
            attempt = None
        new = self._state.adding and not forced_update
        here = base_qs.model is self._version_field.model
        if here:
            plan = planned(self, attempt, base_qs, values, new=new)
            if plan is None:
                return []
            values = plan
        rows = super()._do_update(
            base_qs, using, pk_val, values, update_fields, forced_update, *args, **more
        )
        if attempt is None or attempt.mode == "leave":
            return rows
        if rows:
            if here:
                attempt.written = True
                version = None if attempt.compared is None else attempt.compared + 1
                self._version_settled(version, using, values)
                if attempt.expected is not None:  # maybe of a row that was never read
                    loaded_state.snapshot(self, self._version_field.model._meta.pk_fields)
            else:
                loaded_state.written(self, values)
        elif not new:
            raise attempt.failed(self, using, gone=not here or attempt.compared is None)
        return rows

    def _do_insert(self, manager: Any, using: str, *args: Any, **more: Any) -> Any:
        """Note in which transaction the row was inserted, and what it was."""
        rows = super()._do_insert(manager, using, *args, **more)  # type: ignore[misc]
        if manager.model is self._version_field.model:
            self._version_created(using, known=True)
        return rows

    def _version_created(self, using: str, *, known: bool) -> None:
        """As after an INSERT; where it may have found another row there, carry no version."""
        if known:
            self._version_settled(self.__dict__.get(self._version_field.attname), using, ())
            loaded_state.snapshot(self, self._meta.concrete_fields)
        elif self._is_pk_set():
            self.__dict__.pop(self._version_field.attname, None)

    def _version_settled(self, version: int | None, using: str, values: Any) -> None:
        """Carry the version that was written, and remember in which transaction that was."""
        state, field = self.__dict__, self._version_field
        state.pop("_version_alone", None)
        state.pop("_version_fate", None)
        state.pop("_version_delete", None)
        if version is None:
            state.pop(field.attname, None)
        else:
            state[field.attname] = version
            if fate := rollback.current(connections[using]):
                state["_version_fate"] = (fate, version)
        loaded_state.written(self, values)


# A save in several tables: a conflict in one takes back what was written in another.


class Tables:
    """What there was before: a savepoint of the row, and what the instance carried.

    Outside a transaction Django opens one for the save, so there no savepoint is needed.
    """

    def __init__(
        self, instance: "GuardedSave", connection: BaseDatabaseWrapper, *, usable: bool
    ) -> None:
        self.state = instance.__dict__
        names = (instance._version_field.attname, "_version_fate", "_version_alone")
        self.before = {name: self.state.get(name) for name in (*names, "_version_origin")}
        self.connection = connection
        self.savepoint = connection.savepoint() if usable else None

    def saved(self) -> None:
        """Drop the savepoint."""
        if self.savepoint is not None:
            self.connection.savepoint_commit(self.savepoint)

    def failed(self, *, stale: bool) -> None:
        """Put back what was there, if the database has done so or can do so."""
        if stale and self.savepoint is not None:
            self.connection.savepoint_rollback(self.savepoint)
            self.connection.savepoint_commit(self.savepoint)
        fate: Any = self.state.get("_version_fate")
        new = fate is not None and fate is not self.before["_version_fate"]
        if stale or (new and fate[0].rolled_back(self.connection)):
            for name, value in self.before.items():
                if value is None:
                    self.state.pop(name, None)
                else:
                    self.state[name] = value


# Zero rows: find out what happened, and say it.


def conflict(  # noqa: PLR0913 - facts for the error
    instance: "GuardedSave",
    expected: int | None,
    using: str,
    *,
    gone: bool = False,
    carried: bool = True,
    rolled_back: bool = False,
) -> StaleObject:
    """Look at the row that was not written, tell the signal, and return the error to raise."""
    field = instance._version_field
    rows: Any = field.model._base_manager.using(using)
    rows = rows.filter(pk=instance._version_pk).values_list(field.attname, flat=True)
    actual = None if gone else rows.first()
    read = _read_with(instance, field.attname) if carried else None
    if read == expected:
        read = None
    ours = carried and read is None
    if ours and actual is not None and expected is not None and actual < expected:
        rolled_back = True  # versions only grow, so this one never came to be
    error = StaleObject(
        instance=instance,
        expected=expected,
        actual=actual,
        using=using,
        rolled_back=rolled_back,
        read=read,
    )
    stale_object.send_robust(type(instance), error=error)
    return error


def _read_with(instance: "GuardedSave", name: str) -> int | None:
    """Return the version that it was read with, unless it was given another to compare with."""
    if "cas_on_save" in instance.__dict__:  # by expect_version()
        return None
    return loaded_state.original(instance).get(name)
