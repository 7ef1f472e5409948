"""QuerySet writes that bump the version, and many compare-and-swaps in one statement."""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from django.db import connections, models, transaction
from django.db.models import Model
from django.db.models.signals import class_prepared
from django.db.transaction import TransactionManagementError

from django_dblock.core.connection import is_aborted
from django_dblock.exceptions import StaleObjects
from django_dblock.signals import stale_object
from django_dblock.versioning import bulk, own_writes
from django_dblock.versioning.bypass import bypassed
from django_dblock.versioning.save import bumped, is_unversioned, not_in_pipeline

M = TypeVar("M", bound=Model, covariant=True)  # noqa: PLC0105 - the name of Django's own stubs


class VersionedQuerySet(models.QuerySet[M]):
    """A queryset whose writes bump the version; base your own querysets on this class.

    ``update()`` and what is built on it (``bulk_update()``, related managers) set
    ``version = version + 1`` in the same UPDATE, and compare nothing, because they use the row's
    present values. Instances in memory keep their version, so their next save is a conflict. With
    multi-table inheritance, Django sends an UPDATE for each table; all of them are one transaction,
    which first locks the rows of the parents, as a save does.
    """

    def update(self, **changes: Any) -> int:
        """Update as Django does, and bump the version unless :func:`bypass_versions` is active.

        Raises:
            ValueError: the version is among the changes.
        """
        field: Any = cast("Any", self.model)._version_field
        if field.name in changes:
            raise ValueError(
                f"{field.name} of {self.model._meta.label} is bumped by update() itself; don't set "
                f"a row's version by hand: another writer's old version could become valid again."
            )
        if not changes or bypassed() or is_unversioned(self.model, changes):
            return super().update(**changes)
        names, keys = frozenset(changes), own_writes.named_keys(self)
        changes[field.name] = bumped(field)
        written = {self.model._meta.get_field(name).model for name in changes}
        if len(written) == 1:
            count = super().update(**changes)
        else:  # an UPDATE for each table
            self._for_write = True
            with _one_transaction(self.db):
                self._lock_as_a_save(written)
                count = super().update(**changes)
        if count:
            own_writes.wrote(self, keys, names, count)
        return count

    update.alters_data = True  # type: ignore[attr-defined]

    def _lock_as_a_save(self, written: Collection[Any]) -> None:
        """Lock the rows of these tables, without the last, in the order in which a save writes.

        Django's ``update()`` begins with the child's table, so it would deadlock with a save. The
        conditions are in a sub-select, so that they may join and aggregate.
        """
        query = self.query
        if query.is_sliced or query.combinator:
            return  # refused by update()
        # Parents' fields come first, as do parents in a save.
        fields = cast("Any", self.model)._meta.concrete_fields
        *before, _ = dict.fromkeys(each.model for each in fields if each.model in written)
        for model in before:
            among: Any = self.values(model._meta.pk.name)
            among.query.select_for_update = False
            rows: Any = models.QuerySet(model, using=self.db).filter(pk__in=among)
            list(rows.select_for_update(no_key=True).order_by("pk").values_list("pk"))

    def bulk_update(
        self, objs: Iterable[M], fields: Iterable[str], batch_size: int | None = None
    ) -> int:
        """Update as Django does, and bump the version of each row.

        The version may be among the fields, so that code which passes all fields of a model works.
        Its value in the objects is ignored: each row gets its next version.
        """
        field: Any = cast("Any", self.model)._version_field
        others = [name for name in fields if name not in {field.name, field.attname}]
        return super().bulk_update(objs, others, batch_size=batch_size)

    bulk_update.alters_data = True  # type: ignore[attr-defined]

    def bulk_create(self, objs: Iterable[M], *args: Any, **options: Any) -> list[M]:
        """Create rows as Django does.

        Raises:
            ValueError: ``update_conflicts`` is set, which would not bump the versions.
        """
        if options.get("update_conflicts") or (len(args) > 2 and args[2]):  # noqa: PLR2004
            raise ValueError(
                f"bulk_create(update_conflicts=True) of {self.model._meta.label} would overwrite "
                f"rows without bumping their versions, so that no reader would notice. Create with "
                f"ignore_conflicts=True and write the others with bulk_save_cas() or update()."
            )
        created = super().bulk_create(objs, *args, **options)
        ignored = options.get("ignore_conflicts") or (len(args) > 1 and args[1])
        for instance in cast("list[Any]", created):
            instance._version_created(self.db, known=not ignored)
        return created

    def bulk_save_cas(
        self,
        objs: Iterable[M],
        fields: Iterable[str],
        *,
        batch_size: int | None = None,
        on_conflict: Literal["report", "raise"] = "report",
    ) -> list[Any]:
        """Write these fields of all objects whose rows still have the version they were read with.

        Each row is written as ``save_cas()`` would, all of a batch in one statement, in one
        transaction. Rows are locked in the order of their primary keys, so two calls at once
        don't deadlock. An object is stale if its row has another version, was deleted, or is
        not in this queryset. A stale object is not written, and keeps its version.

        Does not call ``save()`` or ``pre_save()`` of fields (``auto_now``), and does not
        send Django's signals, like ``bulk_update()``.

        Returns:
            The primary keys of the stale objects, in the order given.

        Args:
            objs: instances of the model, each once.
            fields: the names of the fields to write: plain columns with plain values.
            batch_size: rows in one statement at most; by default all that fit.
            on_conflict: ``"report"`` writes the objects that are not stale; ``"raise"`` writes all
                objects or none.

        Raises:
            StaleObjects: with ``on_conflict="raise"``, some objects are stale; nothing was written.
            MissingVersion: an object has no version; nothing was sent.
            StaleObject: an object carries a version that was rolled back; nothing was sent.
            TransactionManagementError: a receiver of ``stale_object`` has aborted the transaction;
                nothing was written.
            TypeError, ValueError: an object, a field or an option is not valid; nothing was sent.
            NotSupportedError: the queryset is a union, an intersection or a difference, or is
                fenced; or the connection is in psycopg's pipeline mode. Nothing was sent.
        """
        if on_conflict not in ("report", "raise"):
            raise ValueError(f"on_conflict is 'report' or 'raise', not {on_conflict!r}.")
        if batch_size is not None and batch_size < 1:
            raise ValueError("Batch size must be a positive integer.")
        model, instances = cast("Any", self.model), cast("Iterable[Any]", objs)
        cast("Any", self)._not_support_combined_queries("bulk_save_cas")
        if getattr(self, "_lease", None) is not None:  # a FencedQuerySet, too
            cast("Any", self)._refuse("bulk_save_cas")
        self._for_write = True
        columns = bulk.checked_fields(model, fields)
        rows = bulk.checked_rows(self, instances, columns)
        if not rows:
            return []
        connection = connections[self.db]
        not_in_pipeline(connection)
        most = connection.ops.bulk_batch_size(bulk.parameters_per_row(model, columns), rows)
        size = min(batch_size or most, most)
        written: list[bulk.Row] = []
        with transaction.atomic(using=self.db, savepoint=on_conflict == "raise"):
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                written += [batch[at] for at in bulk.write(self, batch, columns)]
            done = {row.instance.pk for row in written}
            stale = [row.instance.pk for row in rows if row.instance.pk not in done]
            if stale:
                error = StaleObjects(model=self.model._meta.label, pks=stale, using=self.db)
                stale_object.send_robust(self.model, error=error)
                if on_conflict == "raise":
                    raise error
                if connection.needs_rollback or is_aborted(connection):
                    raise TransactionManagementError(
                        "A receiver of stale_object has swallowed a database error or called "
                        "set_rollback(True), so bulk_save_cas() can't commit what it has written. "
                        "Nothing was written. Let the receiver write in a transaction.atomic() "
                        "block of its own."
                    )
        for row in written:
            row.settle(self.db, columns)
        return stale

    bulk_save_cas.alters_data = True  # type: ignore[attr-defined]


def _one_transaction(using: str) -> AbstractContextManager[Any]:
    """Return a transaction, unless one is open.

    Else the change of a child would be there before the new version of its parent, and an earlier
    reader could overwrite it in between. No block in an open one: it would be marked for rollback
    by an ``update()`` that is refused before it sends anything.
    """
    if connections[using].get_autocommit():
        return transaction.atomic(using=using)
    return nullcontext()


# The manager whose querysets bump the version.


# ruff: noqa: D102 - described at the queryset


if TYPE_CHECKING:

    class VersionedManager(models.Manager[M]):
        """The manager of a VersionedModel, for type checkers; makes VersionedQuerySets."""

        def get_queryset(self) -> VersionedQuerySet[M]: ...
        def all(self) -> VersionedQuerySet[M]: ...
        def none(self) -> VersionedQuerySet[M]: ...
        def using(self, alias: str | None) -> VersionedQuerySet[M]: ...
        def filter(self, *args: Any, **kwargs: Any) -> VersionedQuerySet[M]: ...
        def exclude(self, *args: Any, **kwargs: Any) -> VersionedQuerySet[M]: ...
        def order_by(self, *field_names: Any) -> VersionedQuerySet[M]: ...
        def select_related(self, *fields: Any) -> VersionedQuerySet[M]: ...
        def select_for_update(self, *args: Any, **options: Any) -> VersionedQuerySet[M]: ...
        def defer(self, *fields: Any) -> VersionedQuerySet[M]: ...
        def only(self, *fields: Any) -> VersionedQuerySet[M]: ...
        def bulk_save_cas(
            self,
            objs: Iterable[M],
            fields: Iterable[str],
            *,
            batch_size: int | None = None,
            on_conflict: Literal["report", "raise"] = "report",
        ) -> list[Any]: ...

else:

    class VersionedManager(models.Manager.from_queryset(VersionedQuerySet)):
        """The manager of a VersionedModel. Base a manager of your own on this one."""


def _bumping_base(sender: Any, **_: Any) -> None:
    """Let what Django itself writes bump as well: related managers' ``add()``, ``SET_NULL``.

    Django writes these through the model's base manager, which must not hide rows. The model's own
    manager is that already, unless it makes its querysets itself. The base manager is not set by
    ``Meta.base_manager_name``, which every migration would repeat.

    A base manager that the model, or a parent of it, names in its Meta is left alone: the package
    that named it needs it, as polymorphic models do to find the child class through a foreign key.
    Check E022 says so if its querysets don't bump.
    """
    meta = sender._meta
    if meta.abstract or not hasattr(sender, "_version_settled") or _names_base_manager(sender):
        return
    own = [
        manager
        for manager in meta.managers
        if issubclass(getattr(manager, "_queryset_class", object), VersionedQuerySet)
    ]
    plain = [each for each in own if type(each).get_queryset is models.Manager.get_queryset]
    made = meta.base_manager.get_queryset.__func__ is not models.Manager.get_queryset
    if plain:
        manager: Any = plain[0]
    elif made and meta.base_manager.auto_created and own:
        # The base manager that Django would make is another package's, with a get_queryset() of
        # its own: a manager of that kind, whose querysets bump, takes its place.
        manager = own[0]
    else:
        meta.default_manager_name = meta.default_manager.name  # it stays what it was
        manager = VersionedManager()
        sender.add_to_class("_versioned", manager)
    meta.base_manager_name = manager.name
    sender._version_base_manager = manager.name
    meta.__dict__.pop("base_manager", None)


def _names_base_manager(model: Any) -> bool:
    """Return whether a Meta names the base manager, its own or the one that Django inherits."""
    if model._meta.base_manager_name:
        return True
    parent = next(each for each in model.__mro__[1:] if hasattr(each, "_meta"))
    named = parent._base_manager.name != "_base_manager"
    return named and "_version_base_manager" not in vars(parent)


class_prepared.connect(_bumping_base)
