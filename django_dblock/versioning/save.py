"""One save: the version to compare with, the values to set, and the meaning of zero rows."""

from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast
from uuid import UUID

import psycopg
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Value
from django.db.models.fields.related_descriptors import ForwardOneToOneDescriptor
from django.db.models.functions import Greatest
from django.db.models.query import QuerySet
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import class_prepared
from django.db.models.sql.where import ExtraWhere

from django_dblock.core.connection import is_aborted, refuse_pipeline
from django_dblock.exceptions import MissingVersion, StaleObject
from django_dblock.signals import stale_object
from django_dblock.sql.versioning import IS
from django_dblock.versioning import loaded_state, own_writes, rollback
from django_dblock.versioning.bypass import bypassed
from django_dblock.versioning.field import MAX_VERSION, VersionField

Values = list[tuple[Any, Any, Any]]
"""The values that Django is about to SET: (field, None, value)."""

Mode = Literal["compare", "bump", "ignore", "leave"]
"""What a save does with the version.

- ``compare``: compare the version, and bump it.
- ``bump``: bump the version only, so that the last write wins.
- ``ignore``: neither, as all the fields that are saved are ``unversioned``.
- ``leave``: save as if the model had no version (``bypass_versions()``).
"""


@dataclass(slots=True)
class Attempt:
    """What one save does with the version, and how far it has come.

    Attributes:
        mode: see :data:`Mode`.
        expected: the version to compare with, where the caller named one.
        compared: the version that the UPDATE compared with.
        written: the row has been written.
        conflict: the error that this save ends with.
        taken: attributes that took the row's value over, with the values before and after.
        earlier: what this save has written to tables of parents before that of the version.
        unread: the instance was made by hand, so what it carries is no row's version.
        outer: the ``save_cas(expected=…)`` that calls this save before its own UPDATE.
    """

    mode: Mode
    expected: int | None = None
    compared: int | None = None
    written: bool = False
    conflict: StaleObject | None = None
    taken: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    earlier: Values = field(default_factory=list)
    unread: bool = False
    outer: "Attempt | None" = None

    def join(self, outer: "Attempt") -> None:
        """Compare with the version that the save around this one was asked to compare with.

        A receiver of ``pre_save`` may save the instance, with all that the caller has set.
        """
        if outer.expected is not None and not outer.written:
            self.mode, self.expected, self.unread = "compare", outer.expected, outer.unread
            self.outer = outer

    def failed(
        self, instance: "GuardedSave", using: str, *, gone: bool, table: str | None = None
    ) -> StaleObject:
        """Return the error for zero rows.

        Args:
            instance: what was saved.
            using: the alias of the database.
            gone: the row is not there, so it needs no look.
            table: the table that lacks a row, where the table with the version has one.
        """
        expected = self.compared
        if expected is None:  # a parent's table before the one with the version, or no comparison
            carried = instance.__dict__.get(instance._version_field.attname)
            expected = carried if self.expected is None else self.expected
        self.conflict = conflict(
            instance, expected, using, gone=gone, carried=self.expected is None, table=table
        )
        return self.conflict


def plain_save(instance: "GuardedSave", update_fields: Iterable[str] | None) -> Attempt:
    """Return what a ``save()`` does that was not asked for by ``save_cas()``."""
    if bypassed():
        return Attempt("leave")
    if update_fields and is_unversioned(type(instance), update_fields):
        return Attempt("ignore")
    attempt = Attempt("compare" if instance.cas_on_save else "bump")
    saving, outer = _saving.get()
    if saving is instance and outer is not None:
        attempt.join(outer)
    return attempt


def not_in_pipeline(connection: BaseDatabaseWrapper) -> None:
    """Refuse psycopg's pipeline mode, in which no statement says how many rows it has changed.

    Raises:
        NotSupportedError: as ``core.connection.refuse_pipeline``, which is asked only where it
            will refuse: each save passes here.
    """
    pgconn = getattr(connection.connection, "pgconn", None)
    if pgconn is not None and pgconn.pipeline_status:
        refuse_pipeline(connection)


def is_unversioned(model: Any, names: Iterable[str]) -> bool:
    """Return whether all these fields are ``unversioned``; the version itself is not looked at."""
    unversioned = unversioned_names(model)
    if not unversioned:
        return False
    others = set(names) - {model._version_field.name, model._version_field.attname}
    return bool(others) and others <= unversioned


@cache
def unversioned_names(model: Any) -> frozenset[str]:
    """Return the names of a model's ``unversioned`` fields, and those of their attributes."""
    if not model.unversioned:
        return frozenset()
    fields = [each for each in model._meta.concrete_fields if each.name in model.unversioned]
    return frozenset(name for each in fields for name in (each.name, each.attname))


def without_unchanged(
    instance: "GuardedSave",
    attempt: "Attempt | None",
    model: Any,
    values: Values,
    update_fields: Any,
) -> Values:
    """Return what is SET in a table, without the unversioned fields that were not changed.

    That holds for a save of all fields. Other writers change unversioned fields without a bump, so
    the save would silently restore the values that the instance was read with: a counter would lose
    what was counted since.
    """
    if attempt is None or attempt.mode == "leave":
        return values
    if update_fields is not None:
        # Django names the fields itself if some are deferred. Then it names all that are loaded.
        loaded = {each.name for each, _, _ in values if each.attname in instance.__dict__}
        if not loaded_names(instance, model) <= loaded:
            return values
    names, original = unversioned_names(type(instance)), loaded_state.original(instance)
    # If nothing is left, Django only looks whether the row is there.
    return [
        (field, raw, value)
        for field, raw, value in values
        if field.name not in names
        or field.attname not in original
        or loaded_state.differ(value, original[field.attname])
    ]


def loaded_names(instance: "GuardedSave", model: Any) -> set[str]:
    """Return the names of the fields in the model's table that a save of all fields SETs."""
    state = instance.__dict__
    return {
        each.name
        for each in model._meta.local_concrete_fields
        if each.attname in state and not (each.primary_key or each.generated)
    }


def checked_version(version: object) -> int:
    """Return a version that a row can have.

    Raises:
        TypeError: the version is not an int.
        ValueError: the version is out of range.
    """
    if version is None:
        raise TypeError(
            "expected=None is no version, as from a client that sent none: refuse its request. To "
            "compare with the version that this instance was read with, leave expected= out."
        )
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"expected= is a version, a whole number; not {version!r}.")
    if not 0 <= version <= MAX_VERSION:
        raise ValueError(f"expected={version} is not a version: they go from 0 to {MAX_VERSION}.")
    return version


def carried_version(instance: "GuardedSave", using: str) -> int:
    """Return the version that the instance was read with. Never loads it.

    If the transaction in which the instance was last written was rolled back, the instance gets
    back the version that it carried before.

    Raises:
        MissingVersion: the instance carries no version, so there is nothing to compare.
        StaleObject: the row was inserted in a transaction that was rolled back.
    """
    state, name = instance.__dict__, instance._version_field.attname
    known = "_version_written" not in state or rollback.forget_rolled_back(instance)
    version = state.get(name)
    if (
        instance._state.adding
        or not isinstance(version, int)
        or "_version_alone" in state
        or not loaded_state.is_same_row(instance)
    ):
        raise missing_version(instance)
    if not known:
        raise conflict(instance, version, using, rolled_back=True)
    return version


def missing_version(instance: "GuardedSave") -> MissingVersion:
    """Return the error for an instance that carries no version to compare."""
    return MissingVersion(model=instance._meta.label, pk=instance.pk, adding=instance._state.adding)


def planned(
    instance: "GuardedSave", attempt: Attempt | None, rows: Any, values: Values, *, new: bool
) -> Values | None:
    """Return what to SET in the table with the version; None where only an INSERT can be right."""
    state, version = instance.__dict__, instance._version_field
    if attempt is None:
        return with_version(values, version, restored(version, state[version.attname]))
    if attempt.mode in ("leave", "ignore"):
        return without_version(values, version)
    if attempt.mode == "bump":
        return with_version(values, version, bumped(version))
    if new:
        return None  # never read, so there is nothing to compare: INSERT finds out if it is there
    expected: int = state[version.attname] if attempt.expected is None else attempt.expected
    attempt.compared = expected
    compare(rows, version, expected)
    return with_version(values, version, expected + 1)


# Conditions that are quoted already. What Django's filter() does for a condition (a clone, a
# look-up, a column and a value that resolve themselves) would be two fifths of the whole save.


def compare(queryset: Any, version: VersionField, expected: int) -> None:
    """Narrow an UPDATE or DELETE to the row with this version."""
    queryset.query.where.add(_Quoted([_is(version)], [expected]), "AND")


def by_key(queryset: Any, pk: Any) -> None:
    """Let Django's next ``filter(pk=…)`` on this one queryset find its condition in place.

    Only where every method that is skipped is Django's own, and the value needs no preparation.
    """
    kinds: tuple[Any, Any] = (type(queryset), type(pk))
    low_high = _key_range(queryset.model, *kinds)
    if low_high is None or (low_high and not low_high[0] <= pk <= low_high[1]):
        return
    queryset.query.where.add(_Quoted([_is(queryset.model._meta.pk)], [pk]), "AND")

    def narrowed(*, pk: Any) -> Any:  # noqa: ARG001 - the condition is there already
        return queryset

    queryset.filter = narrowed


class _Quoted(ExtraWhere):
    """A condition without the parentheses that Django puts around an arbitrary one."""

    def as_sql(self, compiler: Any = None, connection: Any = None) -> Any:  # noqa: ARG002
        return self.sqls[0], self.params


@cache
def _is(field: Any) -> str:
    quote = connections[DEFAULT_DB_ALIAS].ops.quote_name  # all PostgreSQL quotes alike
    return IS.format(table=quote(field.model._meta.db_table), column=quote(field.column))


_SMALL, _INT, _BIG = ((-(2**bits), 2**bits - 1) for bits in (15, 31, 63))
_KEYS: dict[tuple[Any, Any], tuple[int, int] | tuple[()]] = {
    (models.SmallAutoField, int): _SMALL,
    (models.AutoField, int): _INT,
    (models.BigAutoField, int): _BIG,
    (models.SmallIntegerField, int): _SMALL,
    (models.IntegerField, int): _INT,
    (models.BigIntegerField, int): _BIG,
    (models.UUIDField, UUID): (),
    (models.CharField, str): (),
}
"""Keys that reach the statement as they are: by field and by Python's type, with their range."""


@cache
def _key_range(model: Any, queryset: Any, kind: type) -> tuple[int, int] | tuple[()] | None:
    """Return the range of a key that needs no preparation; None where ``filter()`` is needed."""
    skipped = ("filter", "_filter_or_exclude", "_filter_or_exclude_inplace", "_chain", "_clone")
    if any(getattr(queryset, name) is not getattr(QuerySet, name) for name in skipped):
        return None
    return _KEYS.get((type(model._meta.pk), kind))


def with_version(values: Values, version: VersionField, value: Any) -> Values:
    """Return what is SET with this version in it, whatever stood there for it."""
    return [*without_version(values, version), (version, None, value)]


def without_version(values: Values, version: VersionField) -> Values:
    """Return what is SET without the version."""
    return [each for each in values if each[0] is not version]


def bumped(version: VersionField) -> Any:
    """Return the row's version plus one, whichever it is."""
    return F(version.name) + 1


def restored(version: VersionField, value: Any) -> Any:
    """Return the version of a fixture, but never one that the row has had before."""
    return Greatest(bumped(version), Value(value, output_field=version))


# The seam to Django: what of ``Model.save()`` is overridden, and nothing copied.
#
# ``save()`` calls ``save_base()``, which sends the signals and opens what a table needs, and then
# for each table ``_do_update()``, and ``_do_insert()`` if that has written no row. The last two are
# private; ``tests/versioning/test_seam.py`` pins their signatures on each version of Django. A
# fixture calls Django's own ``save_base()`` instead of this one, so a save without an attempt is a
# fixture.


# The saves of the current thread or task; others may save the same instance at the same time.
_saving: ContextVar[tuple[Any, Attempt | None]] = ContextVar(
    "django_dblock_saving", default=(None, None)
)


class GuardedSave(models.Model):
    """Saves that compare. The state of a save is on the instance, in ``_version_*``."""

    cas_on_save: ClassVar[bool] = True
    unversioned: ClassVar[Iterable[str]] = ()
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
        attempt = (
            None if raw else state.pop("_version_asked", None) or plain_save(self, update_fields)
        )
        if attempt and attempt.mode == "compare" and attempt.expected is None:
            updates = not self._state.adding and self._is_pk_set() and not force_insert
            if updates or force_update or update_fields:
                carried_version(self, using)
        if update_fields and attempt:
            update_fields = self._version_update_fields(update_fields, attempt.mode)
        connection = connections[using]
        if attempt:
            not_in_pipeline(connection)
        model: Any = self._meta.concrete_model  # a proxy's own names its model as a parent
        several = bool(model._meta.parents)
        # In manual transaction management Django opens a block for several tables all the same.
        inside = connection.in_atomic_block or (several and not connection.get_autocommit())
        usable = inside and not connection.needs_rollback
        tables = Tables(self, connection, usable=usable) if several else None
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
            # A receiver of stale_object may have aborted the transaction; a savepoint heals that.
            if stale and usable and (several or not is_aborted(connection)):
                connection.needs_rollback = False
            if tables:
                tables.failed(stale=stale)
            raise
        else:
            if tables:
                tables.saved()
        finally:
            _saving.reset(saving)

    def _version_update_fields(self, names: Iterable[str], mode: Mode) -> Iterable[str]:
        """Return the ``update_fields`` for signals, which include the version if it is written."""
        version = self._version_field
        if mode in ("compare", "bump"):
            return frozenset([*names, version.name])
        others = frozenset(names) - {version.name, version.attname}
        return others or names

    @property
    def _version_pk(self) -> Any:
        """Return the primary key in the table with the version, which may be a parent's."""
        return self._get_pk_val(self._version_field.model._meta)

    @classmethod
    def from_db(cls, db: str | None, field_names: Any, values: Any, **more: Any) -> Self:
        """Keep what was read: it is the original, should this end in a conflict."""
        instance = super().from_db(db, field_names, values, **more)
        loaded_state.loaded(instance, field_names, values)
        instance.__dict__["_version_epoch"] = own_writes.clock.now
        if db in rollback.uncommitted.by_alias:
            rollback.was_read(instance, db)
        return instance

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: Any = None,
    ) -> None:
        """Read the row again. A version that is read alone is not one to compare with."""
        names = None if fields is None else set(fields)
        state, name = self.__dict__, self._version_field.attname
        same = loaded_state.is_same_row(self)
        more = {} if from_queryset is None else {"from_queryset": from_queryset}
        unloaded = names is None and name not in state  # Django would leave it so
        if unloaded:
            state[name] = None
        try:
            super().refresh_from_db(using, names, **more)
        except BaseException:
            if unloaded:
                del state[name]
            raise
        loaded = [each for each in self._meta.concrete_fields if each.attname in state]
        read = [
            each for each in loaded if names is None or each.name in names or each.attname in names
        ]
        if read and from_queryset is not None:
            partly = names is not None or len(loaded) < len(self._meta.concrete_fields)
            read = _read_by(from_queryset, read, names, partly=partly)
        if unloaded and self._version_field not in read:
            del state[name]
        keys = loaded_state.key_fields(type(self))
        if not same and self._version_field not in read:
            read, keys = [each for each in read if each not in keys], ()  # still of another row
        loaded_state.snapshot(self, [*read, *keys])
        if self._version_field in read:
            self._version_was_read(read)

    def _version_was_read(self, read: Iterable[Any]) -> None:
        """Carry the version that was just read with these fields."""
        state = self.__dict__
        last: rollback.Written | None = state.pop("_version_written", None)
        state.pop("_version_alone", None)
        state["_version_epoch"] = own_writes.clock.now
        older = {field for field in self._meta.concrete_fields if field.attname in state}
        older.difference_update(read, self._meta.pk_fields)
        if any(not field.primary_key for field in older):
            self._version_alone = True
        if self._state.db in rollback.uncommitted.by_alias:
            rollback.was_read(self, self._state.db, last)

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
        values = (
            without_unchanged(self, attempt, base_qs.model, values, update_fields)
            if self.unversioned
            else values
        )
        if here:
            plan = planned(self, attempt, base_qs, values, new=new)
            if plan is None:
                return []
            values = plan
        update = super()._do_update

        def send(rows: Any, values: Values) -> Any:
            if values and (forced_update or not self._meta.select_on_save):
                by_key(rows, pk_val)
            return update(rows, using, pk_val, values, update_fields, forced_update, *args, **more)

        if attempt is None or attempt.compared is None or not here:
            rows = send(base_qs, values)
        else:
            rows, values = self._version_compared(attempt, base_qs, using, values, send)
        if attempt is None:
            return rows
        if rows:
            known = loaded_state.with_returned(values, rows, *args) if any(args) else values
            self._version_wrote(attempt, using, known, here=here)
        elif not new and attempt.mode != "leave":
            lacking = attempt.written and not here
            raise attempt.failed(
                self,
                using,
                gone=not here or attempt.compared is None,
                table=base_qs.model._meta.db_table if lacking else None,
            )
        return rows

    def _version_wrote(self, attempt: Attempt, using: str, values: Values, *, here: bool) -> None:
        """Carry what an UPDATE has written to one table."""
        if attempt.mode in ("ignore", "leave") or attempt.written:
            loaded_state.written(self, values)
            return
        attempt.earlier += values
        if not here:
            return
        # All values are remembered now, after the original to which a rollback returns.
        values, attempt.written = attempt.earlier, True
        version = None if attempt.compared is None else attempt.compared + 1
        if attempt.outer is not None:
            attempt.outer.expected = version
        self._version_settled(version, using, values, attempt.taken, unread=attempt.unread)
        if attempt.expected is not None:  # maybe of a row that was never read
            loaded_state.snapshot(self, loaded_state.key_fields(type(self)))

    def _version_compared(
        self,
        attempt: Attempt,
        rows: Any,
        using: str,
        values: Values,
        send: Callable[[Any, Values], Any],
    ) -> tuple[Any, Values]:
        """Send an UPDATE that compares; send it again if no other writer has written the row."""
        sent = unless_moved(lambda: send(rows, values), using)
        if sent or attempt.compared is None or attempt.expected is not None:
            return sent, values
        overwritten = [each.attname for each, _, _ in attempt.earlier]
        version = reconciled(self, attempt.compared, using, attempt.taken, overwritten)
        if version is None:
            return sent, values
        field, state, taken = self._version_field, self.__dict__, attempt.taken
        merged = [
            (each, model, state[each.attname] if each.attname in taken else value)
            for each, model, value in values
        ]
        again = field.model._base_manager.using(using)
        compare(again, field, version)
        if sent := send(again, with_version(merged, field, version + 1)):
            attempt.compared = version
            return sent, with_version(merged, field, version + 1)
        for name, (old, _) in taken.items():
            loaded_state.assign(self, name, old)
        taken.clear()
        return sent, values

    def _do_insert(
        self, manager: Any, using: str, fields: Any, returning_fields: Any, raw: Any
    ) -> Any:
        """Note in which transaction the row was inserted, what it held, and its primary key."""
        rows = super()._do_insert(manager, using, fields, returning_fields, raw)  # type: ignore[misc]
        if manager.model is self._version_field.model:
            self._version_created(using, known=True)
        elif self._state.adding:
            loaded_state.snapshot(self, loaded_state.key_fields(type(self)))
        if rows:
            # The database's own values, the primary key above all. Django gives them to the
            # instance after this; until the key is known, a changed key would go unnoticed.
            returned = [
                (each, None, value) for each, value in zip(returning_fields, rows[0], strict=True)
            ]
            loaded_state.written(self, returned)
        return rows

    def _version_created(self, using: str, *, known: bool) -> None:
        """Carry the version of a new row; none where the INSERT may have met another row."""
        if known:
            version = self.__dict__.get(self._version_field.attname)
            self._version_settled(version, using, (), unread=True)
            loaded_state.snapshot(self, self._meta.concrete_fields)
        elif self._is_pk_set():
            self.__dict__.pop(self._version_field.attname, None)

    def _version_settled(
        self,
        version: int | None,
        using: str,
        values: Any,
        taken: dict[str, tuple[Any, Any]] | None = None,
        *,
        unread: bool = False,
    ) -> None:
        """Carry the version that was written, and remember in which transaction that was."""
        state, name = self.__dict__, self._version_field.attname
        connection = connections[using]
        # what is committed at once can't be rolled back
        fate = rollback.current(connection) if connection.in_atomic_block else None
        table: Any = self._version_field.model
        if fate is not None and self._is_pk_set(table._meta):  # it is not yet in an INSERT
            rollback.wrote(fate, connection, table, [rollback.row_key(table, self._version_pk)])
        if fate is None or version is None:
            state.pop("_version_written", None)
        else:
            rollback.written(self, fate, version, taken or {}, unread=unread)
        state.pop("_version_alone", None)
        state.pop("_version_delete", None)
        state["_version_epoch"] = own_writes.clock.now
        if version is None:
            state.pop(name, None)
        else:
            state[name] = version
        loaded_state.written(self, values)


class _ParentLink(ForwardOneToOneDescriptor):  # type: ignore[type-arg]  # as at run time
    """The accessor of a parent's object, which Django makes of the child's values, unread."""

    def get_object(self, instance: Any) -> Any:
        """Return Django's object, with all that the child carries beside its version."""
        parent, state = super().get_object(instance), instance.__dict__
        if "_version_epoch" not in parent.__dict__:  # else it was read
            for name in ("_version_written", "cas_on_save", *rollback.KEPT):
                if name in state:
                    parent.__dict__[name] = state[name]
        return parent


def _link_parents(sender: Any, **_: Any) -> None:
    for parent, link in sender._meta.parents.items():
        if (
            link is not None
            and issubclass(parent, GuardedSave)
            and type(vars(sender).get(link.name)) is ForwardOneToOneDescriptor
        ):
            setattr(sender, link.name, _ParentLink(link))


class_prepared.connect(_link_parents)


class _LaterRead:
    """The attribute of an unversioned field: what is read later than the row is original, too."""

    field: Any

    def fetch_many(self, instances: Iterable[Any]) -> None:
        """Read the field of all peers, as Django 6.1 does with ``FETCH_PEERS``."""
        peers = list(instances)
        deferred = [each for each in peers if self.field.attname not in each.__dict__]
        super().fetch_many(peers)  # type: ignore[misc]
        for each in deferred:
            loaded_state.snapshot(each, [self.field])


def _keep_later_reads(sender: Any, **_: Any) -> None:
    if not issubclass(sender, GuardedSave):
        return
    for each in sender._meta.concrete_fields:
        kind = type(getattr_static(sender, each.attname, None))
        # A child's is its parent's, and read later already.
        wraps = issubclass(kind, DeferredAttribute) and not issubclass(kind, _LaterRead)
        if each.name in sender.unversioned and wraps:
            made: Any = type(kind.__name__, (_LaterRead, kind), {})
            setattr(sender, each.attname, made(each))


class_prepared.connect(_keep_later_reads)


def _read_by(
    queryset: Any, fields: list[Any], names: Collection[str] | None, *, partly: bool
) -> list[Any]:
    """Return the fields that ``refresh_from_db(from_queryset=…)`` has read.

    The queryset may leave fields out by ``defer()`` or ``only()``.

    Args:
        queryset: the queryset.
        fields: the fields to read.
        names: the names that the caller has asked for; None for all that are loaded.
        partly: Django names the fields to the queryset.
    """
    queryset = queryset.all()  # of a manager, too
    if partly:
        queryset = queryset.only(*(
            each.name if names is not None and each.name in names else each.attname
            for each in fields
        ))  # fmt: skip
    mask = queryset.query.get_select_mask()
    return [each for each in fields if not mask or each in mask]


def unless_moved(send: Callable[[], Any], using: str) -> Any:
    """Return what a statement that compares returns; False where its row was moved away from it."""
    try:
        return send()
    except OperationalError as error:
        if not _was_moved(error, using):
            raise
        return False


def _was_moved(error: OperationalError, using: str) -> bool:
    """Return whether a statement met a row that a concurrent UPDATE has moved to another partition.

    PostgreSQL reports that as 40001 at every isolation level. Inside a transaction nothing can be
    done about it, as the transaction is aborted; the error then gets a note.
    """
    cause = error.__cause__
    if not isinstance(cause, psycopg.errors.SerializationFailure):
        return False
    if "moved to another partition" not in str(cause):
        return False
    if connections[using].get_autocommit():
        return True
    error.add_note(
        "A concurrent UPDATE has changed the partition key of this row. It is a conflict, but "
        "PostgreSQL has aborted the transaction: run it again with @retry_on_conflict."
    )
    return False


# A save in several tables: a conflict in one takes back what was written in another.


class Tables:
    """The state before a save: a savepoint of the rows, and what the instance carried.

    Outside a transaction Django opens one for the save, so there no savepoint is needed.
    """

    def __init__(
        self, instance: "GuardedSave", connection: BaseDatabaseWrapper, *, usable: bool
    ) -> None:
        self.state = instance.__dict__
        names = (instance._version_field.attname, "_version_written", *rollback.KEPT)
        self.before = {name: self.state.get(name) for name in names}
        self.connection = connection
        self.savepoint = connection.savepoint() if usable else None

    def saved(self) -> None:
        """Drop the savepoint."""
        if self.savepoint is not None:
            self.connection.savepoint_commit(self.savepoint)

    def failed(self, *, stale: bool) -> None:
        """Restore the state of the instance, if the database has rolled back or can roll back."""
        if stale and self.savepoint is not None:
            self.connection.savepoint_rollback(self.savepoint)
            self.connection.savepoint_commit(self.savepoint)
        written: Any = self.state.get("_version_written")
        new = written is not None and written is not self.before["_version_written"]
        if stale or (new and written.fate.rolled_back(self.connection)):
            for name, value in self.before.items():
                if value is None:
                    self.state.pop(name, None)
                else:
                    self.state[name] = value


# Zero rows: find out what happened, and report it.


def reconciled(
    instance: "GuardedSave",
    expected: int,
    using: str,
    taken: dict[str, tuple[Any, Any]] | None = None,
    overwritten: Collection[str] = (),
) -> int | None:
    """Return the version to compare with next, if no other writer has written the row; else None.

    That is so in two cases, and only for these is a statement sent:

    - All the writes since the instance was read were this thread's own (see ``own_writes``). What
      they changed is taken over into the instance; if the instance has changed it too, and not to
      the same value, that is a conflict.
    - The write that the instance carries the version of was rolled back in a way that Django's
      list does not show (a savepoint rolled back by hand, a TestCase), and the row has the
      version from before.

    Args:
        instance: what was not written.
        expected: the version that the row was expected to have.
        using: the alias of the database.
        taken: filled with the attributes that took the row's value over; None to take nothing.
        overwritten: attributes that this save has written already, to the table of a parent. What
            the own writes left there is gone, so it is a conflict if they have written one of them.
    """
    writes = own_writes.since(instance, using)
    written: rollback.Written | None = instance.__dict__.get("_version_written")
    earlier = None
    if (
        written is not None
        and written.version == expected
        and written.fate.alias == using
        and written.fate.is_of(connections[using])
    ):
        earlier = written.before
    if not writes and earlier is None:
        return None
    version, meta = instance._version_field.attname, cast("Any", instance._meta)
    names = frozenset().union(*(each.names for each in writes))
    attributes = [meta.get_field(name).attname for name in names]
    rows: Any = type(instance)._base_manager.using(using).filter(pk=instance.pk)
    row = rows.values(version, *attributes).first() or {version: None}
    actual: int | None = row[version]
    if earlier is not None and earlier.version == actual:
        rollback.restore(instance, earlier)
    elif (
        actual is None
        or not writes
        or actual - expected != len(writes)
        or not set(attributes).isdisjoint(overwritten)
    ):
        actual = None
    elif taken is not None:
        merged = own_writes.merge(instance, names, row)
        taken.update(merged or {})
        actual = None if merged is None else actual
    return actual


def conflict(  # noqa: PLR0913 - facts for the error
    instance: "GuardedSave",
    expected: int | None,
    using: str,
    *,
    gone: bool = False,
    carried: bool = True,
    rolled_back: bool = False,
    table: str | None = None,
) -> StaleObject:
    """Look at the row that was not written, send the signal, and return the error to raise."""
    version = instance._version_field
    rows: Any = version.model._base_manager.using(using)
    rows = rows.filter(pk=instance._version_pk).values_list(version.attname, flat=True)
    actual = None if gone else rows.first()
    read = _read_with(instance, version.attname) if carried else None
    if read == expected:
        read = None
    ours = carried and read is None
    elsewhere = instance._state.db if instance._state.db not in {None, using} else None
    if (
        ours
        and elsewhere is None
        and actual is not None
        and expected is not None
        and actual < expected
    ):
        rolled_back = True  # versions only grow, so this one never came to be
    error = StaleObject(
        instance=instance,
        expected=expected,
        actual=actual,
        using=using,
        rolled_back=rolled_back,
        read=read,
        read_using=elsewhere if ours else None,
        missing_in=table,
    )
    stale_object.send_robust(type(instance), error=error)
    return error


def _read_with(instance: "GuardedSave", name: str) -> int | None:
    """Return the version that the instance was read with; None after ``expect_version()``."""
    if "cas_on_save" in instance.__dict__:  # by expect_version()
        return None
    return loaded_state.original(instance).get(name)
