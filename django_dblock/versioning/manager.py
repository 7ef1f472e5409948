"""The manager whose querysets bump the version."""
# ruff: noqa: D102 - what they do stands at the queryset

from typing import TYPE_CHECKING, Any, Literal

from django.db import models
from django.db.models.signals import class_prepared

from django_dblock.versioning.queryset import M, VersionedQuerySet

if TYPE_CHECKING:
    from collections.abc import Iterable

    class VersionedManager(models.Manager[M]):
        """The manager of a VersionedModel, as type checkers see it: its querysets are ours."""

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

    It does so through the model's base manager, which must not hide rows. The model's own manager
    is that already, unless it makes its querysets itself. Not by ``Meta.base_manager_name``, which
    every migration would repeat.
    """
    meta = sender._meta
    if meta.abstract or meta.base_manager_name or not hasattr(sender, "_version_settled"):
        return
    manager: Any
    for manager in meta.managers:
        if (
            issubclass(getattr(manager, "_queryset_class", object), VersionedQuerySet)
            and type(manager).get_queryset is models.Manager.get_queryset
        ):
            break
    else:
        meta.default_manager_name = meta.default_manager.name  # it stays what it was
        manager = VersionedManager()
        sender.add_to_class("_versioned", manager)
    meta.base_manager_name = manager.name
    meta.__dict__.pop("base_manager", None)


class_prepared.connect(_bumping_base)
