"""The seam to Django: what of ``Model.save()`` is overridden, and nothing copied.

``save()`` calls ``save_base()``, which sends the signals and opens what a table needs, and then for
each table ``_do_update()``, and ``_do_insert()`` if that has written no row. The last two are
private; ``tests/versioning/test_seam.py`` pins their signatures on each version of Django. A
fixture calls Django's own ``save_base()``, past ours: without an attempt it is a fixture.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

from django.db import connections, models, router

from django_dblock.exceptions import StaleObject
from django_dblock.versioning import attempt as attempts
from django_dblock.versioning import fate as fates
from django_dblock.versioning import origin as origins
from django_dblock.versioning.attempt import (
    Attempt,
    Values,
    bumped,
    compare,
    plain_save,
    restored,
    with_version,
    without_version,
)
from django_dblock.versioning.field import VersionField


class GuardedSave(models.Model):
    """Saves that compare. The state of one is on the instance, in ``_version_*``."""

    cas_on_save: ClassVar[bool] = True
    _version_field: ClassVar[VersionField]
    _version_asked: Attempt
    _version_attempt: Attempt | None = None
    _version_alone: bool

    class Meta:
        abstract = True

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
        outer = state.get("_version_attempt")
        connection = connections[using]
        usable = connection.in_atomic_block and not connection.needs_rollback
        savepoint = connection.savepoint() if usable and self._meta.parents else None
        if attempt:
            self._version_attempt = attempt
        try:
            super().save_base(
                raw=raw,
                force_insert=force_insert,
                force_update=force_update,
                using=using,
                update_fields=update_fields,
            )
        except StaleObject as error:
            if usable and attempt and error is attempt.conflict:
                connection.set_rollback(False)
                if savepoint is not None:
                    connection.savepoint_rollback(savepoint)
                    connection.savepoint_commit(savepoint)
            raise
        else:
            if savepoint is not None:
                connection.savepoint_commit(savepoint)
        finally:
            if outer is None:
                state.pop("_version_attempt", None)
            else:  # a receiver has saved the instance that is being saved
                self._version_attempt = outer

    @classmethod
    def from_db(cls, db: str | None, field_names: Any, values: Any, **more: Any) -> Self:
        """Keep what was read: it is the original, should this end in a conflict."""
        instance = super().from_db(db, field_names, values, **more)
        origins.read(instance, field_names, values)
        return instance

    def refresh_from_db(
        self, using: str | None = None, fields: Iterable[str] | None = None, **more: Any
    ) -> None:
        """Read again. A version read alone, without the rest, is not one to compare with."""
        names = None if fields is None else set(fields)
        super().refresh_from_db(using, names, **more)
        state = self.__dict__
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

    def _do_update(
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

        def send(values: Values) -> Any:
            parent = super(GuardedSave, self)
            return parent._do_update(  # type: ignore[misc]
                base_qs, using, pk_val, values, update_fields, forced_update, *args, **more
            )

        field, attempt = self._version_field, self._version_attempt
        new = self._state.adding and not forced_update
        if base_qs.model is not field.model:
            if not (rows := send(values)) and attempt and attempt.mode != "leave" and not new:
                raise attempt.failed(self, using, gone=True)
            if rows:
                origins.written(self, values)
            return rows
        if attempt is None:
            version = self.__dict__[field.attname]
            return send(with_version(values, field, restored(field, version)))
        if attempt.mode == "leave":
            return send(without_version(values, field))
        if attempt.mode == "bump":
            if rows := send(with_version(values, field, bumped(field))):
                self._version_settled(None, using, values)
            elif not new:
                raise attempt.failed(self, using, gone=True)
            return rows
        before = self.__dict__.get(field.attname)
        expected = before if attempt.expected is None else attempt.expected
        if new and attempt.expected is None:
            return []  # never read, so there is nothing to compare: INSERT finds out if it is there
        compare(base_qs, field, expected)
        if not (rows := send(with_version(values, field, expected + 1))):
            raise attempt.failed(self, using, gone=False)
        attempt.written, attempt.before = True, before
        self._version_settled(expected + 1, using, values)
        return rows

    def _do_insert(self, manager: Any, using: str, *args: Any, **more: Any) -> Any:
        """Note in which transaction the row was inserted, and what it was."""
        rows = super()._do_insert(manager, using, *args, **more)  # type: ignore[misc]
        if manager.model is self._version_field.model:
            version = self.__dict__.get(self._version_field.attname)
            self._version_settled(version, using, ())
            origins.snapshot(self, self._meta.concrete_fields)
        return rows

    def _version_settled(self, version: int | None, using: str, values: Any) -> None:
        """Carry the version that was written, and remember in which transaction that was."""
        state, field = self.__dict__, self._version_field
        state.pop("_version_alone", None)
        state.pop("_version_fate", None)
        if version is None:
            state.pop(field.attname, None)
        else:
            state[field.attname] = version
            if fate := fates.current(connections[using]):
                state["_version_fate"] = (fate, version)
        origins.written(self, values)
