"""The seam to Django: what of ``Model.save()`` is overridden, and nothing copied.

``save()`` calls ``save_base()``, which sends the signals and opens what a table needs, and then for
each table ``_do_update()``, and ``_do_insert()`` if that has written no row. The last two are
private; ``tests/versioning/test_seam.py`` pins their signatures on each version of Django. A
fixture calls Django's own ``save_base()``, past ours: without an attempt it is a fixture.
"""

from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Self

from django.db import connections, models, router

from django_dblock.versioning import attempt as attempts
from django_dblock.versioning import fate as fates
from django_dblock.versioning import origin as origins
from django_dblock.versioning.attempt import Attempt, Values, plain_save
from django_dblock.versioning.tables import Tables

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
                attempts.carried_version(self, using)
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
        origins.snapshot(self, read)
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
            plan = attempts.planned(self, attempt, base_qs, values, new=new)
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
                    origins.snapshot(self, self._version_field.model._meta.pk_fields)
            else:
                origins.written(self, values)
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
            origins.snapshot(self, self._meta.concrete_fields)
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
            if fate := fates.current(connections[using]):
                state["_version_fate"] = (fate, version)
        origins.written(self, values)
