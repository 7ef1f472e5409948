"""The model that users subclass; the module ``save`` guards each save."""

from collections.abc import Callable, Iterable
from functools import cache
from types import EllipsisType
from typing import Any, ClassVar, Self

from asgiref.sync import sync_to_async
from django.db import connections, models, router, transaction
from django.db.models.deletion import Collector

from django_dblock.versioning import loaded_state, own_writes, save
from django_dblock.versioning.field import VersionField
from django_dblock.versioning.queryset import VersionedManager
from django_dblock.versioning.save import (
    Attempt,
    GuardedSave,
    compare,
    conflict,
    missing_version,
    not_in_pipeline,
    reconciled,
    unless_moved,
)


def delete_cas(
    instance: GuardedSave, expected: int, using: str, delete_row: Callable[..., Any]
) -> tuple[int, dict[str, int]]:
    """Delete the row if it has this version.

    One statement if Django's ``delete()`` would send one; else the row is locked first, and then
    deleted by ``delete_row()``.

    Raises:
        StaleObject: the row has another version or was deleted; nothing was deleted.
    """
    not_in_pipeline(connections[using])
    field, there = instance._version_field, instance._is_pk_set()

    def rows(version: int) -> Any:
        found = field.model._base_manager.using(using).filter(pk=instance._version_pk)
        compare(found, field, version)
        return found

    if (
        there
        and not _has_own_delete(type(instance))
        and Collector(using=using).can_fast_delete(instance)
    ):

        def delete(version: int) -> Any:
            with transaction.mark_for_rollback_on_error(using=using):
                return rows(version)._raw_delete(using)

        count = unless_moved(lambda: delete(expected), using)
        if not count and (version := reconciled(instance, expected, using)) is not None:
            count = delete(version)
        if not count:
            raise conflict(instance, expected, using)
        setattr(instance, instance._meta.pk.attname, None)  # as Django's delete() leaves it
        return count, {instance._meta.label: count}
    # Related rows are collected and deleted by several statements. From the first of them on, no
    # other transaction may write the row.
    with transaction.atomic(using=using):
        if there and not unless_moved(lambda: _lock(rows(expected)), using):
            version = reconciled(instance, expected, using)
            if version is None or not _lock(rows(version)):
                raise conflict(instance, expected, using)
        # An alias only where it is needed: the delete() of treebeard takes none, and goes by the
        # class alone.
        routed = router.db_for_write(type(instance), instance=instance)
        if using == routed == router.db_for_write(type(instance)):
            return delete_row()  # type: ignore[no-any-return]
        return delete_row(using=using)  # type: ignore[no-any-return]


@cache
def _has_own_delete(model: Any) -> bool:
    """Return whether a delete() beside ours and Django's is called, which may do more."""
    others = (each for each in model.__mro__ if each not in {VersionedModel, models.Model})
    return any("delete" in vars(each) for each in others)


def _lock(rows: Any) -> bool:
    return rows.select_for_update().values_list("pk").first() is not None


def touch(instance: "GuardedSave", expected: int, using: str) -> None:
    """Write the version after ``expected`` and nothing else, if the row has that version.

    Raises:
        StaleObject: the row has another version or was deleted.
    """
    not_in_pipeline(connections[using])
    taken: dict[str, tuple[Any, Any]] = {}
    if not unless_moved(lambda: _bump(instance, expected, using), using):
        version = reconciled(instance, expected, using, taken)
        if version is None or not _bump(instance, version, using):
            raise conflict(instance, expected, using)
        expected = version
    merged = [
        (field, None, taken[field.attname][1])
        for field in instance._meta.concrete_fields
        if field.attname in taken
    ]
    instance._version_settled(expected + 1, using, merged, taken)


def _bump(instance: "GuardedSave", expected: int, using: str) -> Any:
    field = instance._version_field
    row: Any = field.model._base_manager.using(using).filter(pk=instance._version_pk)
    compare(row, field, expected)
    with transaction.mark_for_rollback_on_error(using=using):
        return row._update([(field, None, expected + 1)])


class VersionedModel(GuardedSave):
    """A model whose rows are written only if nobody wrote them since they were read.

    Guarantees: an UPDATE by ``save()`` or ``save_cas()`` names the version that the instance was
    read with and writes the next one, in one statement and with as many statements as Django's
    own ``save()``. If the row has another version or is gone, nothing is written and
    :class:`StaleObject` is raised. The instance then keeps its version, and the transaction stays
    usable (for this, multi-table inheritance takes a savepoint inside a transaction). A row that is
    gone is never inserted again. ``QuerySet.update()``, ``bulk_update()`` and fixtures bump.

    After a rollback the instance has the version that it had before. If the open transaction has
    changed the row by ``QuerySet.update()``, without the instance, the changes are merged into the
    instance, provided that the query named the primary keys. A field that both have changed is a
    conflict.

    Does not guarantee:

    - anything about writes without Django, such as SQL and triggers;
    - a comparison by ``delete()`` and ``QuerySet.delete()``;
    - anything about a row that was created again under the same primary key: it starts at 1.

    On REPEATABLE READ and above, and if a concurrent UPDATE moves the row to another partition,
    PostgreSQL itself refuses the losing UPDATE (``OperationalError``, SQLSTATE 40001) and aborts
    its transaction: use :func:`retry_on_conflict`.

    Attributes:
        cas_on_save: set it to False to make the last plain ``save()`` win. Such a save still bumps
            the version, leaves the version of the instance unloaded (because it is not known), and
            never inserts a row that was deleted.
        unversioned: names of fields that need no version, such as ``{"last_login"}``. A ``save()``
            with ``update_fields`` of only these neither compares nor bumps; ``update()`` and
            ``bulk_update()`` of only these don't bump. ``save_cas()`` always compares. A save of
            all fields leaves out those of these that the instance has not changed.

    Source: PostgreSQL manual, 13.2.1 Read Committed Isolation Level (an UPDATE looks at its
    condition again on the row that another transaction has written); M. Fowler, Patterns of
    Enterprise Application Architecture, Optimistic Offline Lock.
    """

    version = VersionField()

    objects: ClassVar[VersionedManager[Self]] = VersionedManager()

    class Meta:  # noqa: D106
        abstract = True

    def save_cas(
        self,
        *,
        expected: int | EllipsisType = ...,
        update_fields: Iterable[str] | None = None,
        using: str | None = None,
    ) -> None:
        """Write the row if it still has the version that this instance was read with.

        As ``save()``, but the method always compares, regardless of ``cas_on_save`` and
        :func:`bypass_versions`, and never sends an INSERT. One statement; a conflict sends a second
        statement, which reads the present row.

        Args:
            expected: compare with this version instead, such as the one that a form, an
                ``If-Match`` header or a queued message carries. None is refused: a client that
                sent no version has seen none.
            update_fields: write only these fields; the version is always written, too.
            using: the alias of the database; else the router's.

        Raises:
            StaleObject: the row has another version or was deleted; nothing was written.
            MissingVersion: the instance has no version, and ``expected`` was not given.
            TypeError, ValueError: ``expected`` is not a version, or ``update_fields`` is empty.
            NotSupportedError: the connection is in psycopg's pipeline mode; nothing was sent.
            RuntimeError: an overridden ``save()`` did not call ``super().save()``.
        """
        if update_fields is not None and not (update_fields := list(update_fields)):
            raise ValueError("update_fields is empty: to bump only the version, touch_version().")
        seen = None if isinstance(expected, EllipsisType) else save.checked_version(expected)
        if not self._is_pk_set():
            raise missing_version(self)
        adding = self._state.adding
        self._version_asked = attempt = Attempt("compare", seen, unread=adding)
        if seen is not None:
            self._state.adding = False  # the caller has seen the row
        try:
            self.save(force_update=update_fields is None, update_fields=update_fields, using=using)
        except BaseException:
            self._state.adding = adding
            raise
        finally:
            self.__dict__.pop("_version_asked", None)
        if not attempt.written:
            self._state.adding = adding
            raise RuntimeError(
                f"{type(self).__name__}.save() returned without having called super().save(): "
                f"nothing was compared, and nothing written."
            )

    def expect_version(self, version: int) -> None:
        """Compare every later write of this instance with the version that a client saw.

        For code that saves without passing ``expected=``: serializers, forms, the admin. From then
        on this instance is compared also with ``cas_on_save = False``. ``refresh_from_db()``
        replaces this version by the version that is read.

        Raises:
            TypeError, ValueError: ``version`` is not a version.
        """
        self.__dict__[self._version_field.attname] = save.checked_version(version)
        self.__dict__.pop("_version_alone", None)
        self.__dict__.pop("_version_written", None)
        self.__dict__["_version_epoch"] = own_writes.clock.now
        self.__dict__["cas_on_save"] = True  # on this instance only
        loaded_state.snapshot(self, loaded_state.key_fields(type(self)))

    def delete_cas(
        self, *, expected: int | EllipsisType = ..., using: str | None = None
    ) -> tuple[int, dict[str, int]]:
        """Delete the row if it still has the version that this instance was read with.

        One statement if ``delete()`` would send one. If Django has to collect related rows
        (relations, signals, parents), one more statement locks the row first.

        Returns:
            The result of Django's ``delete()``.

        Args:
            expected: compare with this version instead; None is refused, as by :meth:`save_cas`.
            using: the alias of the database; else the router's.

        Raises:
            StaleObject: the row has another version or was deleted; nothing was deleted.
            MissingVersion: the instance has no version, and ``expected`` was not given.
            TypeError, ValueError: ``expected`` is not a version.
            NotSupportedError: the connection is in psycopg's pipeline mode; nothing was sent.
        """
        return self._version_delete_row(expected, using, self.delete)

    def _version_delete_row(
        self, expected: int | EllipsisType, using: str | None, delete_row: Callable[..., Any]
    ) -> tuple[int, dict[str, int]]:
        using = using or router.db_for_write(type(self), instance=self)
        if isinstance(expected, EllipsisType):
            return delete_cas(self, save.carried_version(self, using), using, delete_row)
        expected = save.checked_version(expected)
        if not loaded_state.links_agree(self):
            raise missing_version(self)
        return delete_cas(self, expected, using, delete_row)

    def delete(self, *args: Any, **options: Any) -> tuple[int, dict[str, int]]:
        """Delete as Django does; compare if a page has bound the instance to a version."""
        delete = super().delete
        pk, version = self.__dict__.pop("_version_delete", (None, None))
        if version is None or pk != self.pk:
            # Handed on as they came: treebeard's delete() and Wagtail's take no using=None.
            return delete(*args, **options)

        def delete_row(**alias: str) -> Any:
            if args:
                return delete(args[0] or alias.get("using"), *args[1:], **options)
            return delete(**{**options, **alias})

        using = options.get("using") or (args[0] if args else None)
        try:
            return self._version_delete_row(version, using, delete_row)
        except BaseException:
            self.__dict__["_version_delete"] = (pk, version)
            raise

    def touch_version(self, *, using: str | None = None) -> None:
        """Bump the version and write nothing else, once per transaction.

        Use it for the root of an aggregate when one of its parts changes, so that an editor of the
        whole aggregate gets a conflict. If this instance was written in the open transaction
        already, nothing is sent. Otherwise one statement; Django's signals are not sent.

        Raises:
            StaleObject: the row has another version or was deleted.
            MissingVersion: the instance has no version.
            NotSupportedError: the connection is in psycopg's pipeline mode; nothing was sent.
        """
        using = using or router.db_for_write(type(self), instance=self)
        expected = save.carried_version(self, using)
        last = self.__dict__.get("_version_written")
        if (
            last is not None
            and not last.only_read
            and last.version == expected
            and last.fate.alias == using
            and last.fate.pending(connections[using])
        ):
            return
        touch(self, expected, using)

    async def asave_cas(self, **options: Any) -> None:
        """Call :meth:`save_cas` in a thread, for async code; no transaction spans the await."""
        await sync_to_async(self.save_cas)(**options)

    async def adelete_cas(self, **options: Any) -> tuple[int, dict[str, int]]:
        """Call :meth:`delete_cas` in a thread, for async code; no transaction spans the await."""
        return await sync_to_async(self.delete_cas)(**options)

    async def atouch_version(self, **options: Any) -> None:
        """Call :meth:`touch_version` in a thread, for async code; no transaction spans it."""
        await sync_to_async(self.touch_version)(**options)


# Bind an instance to the version that a page showed: its saves, and its ``delete()`` as well.


def expect(instance: VersionedModel, version: int) -> None:
    """Compare each write and the delete of this instance with the version that a page showed.

    For code that calls ``save()`` and ``delete()`` itself: formsets, the admin. The delete is
    bound until the instance is written, or becomes another row's.
    """
    instance.expect_version(version)
    instance.__dict__["_version_delete"] = (instance.pk, version)
