"""Delete a row only if it has the version somebody saw."""

from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models.deletion import Collector

from django_dblock.versioning.attempt import compare
from django_dblock.versioning.conflict import conflict

if TYPE_CHECKING:
    from django_dblock.versioning.guarded import GuardedSave


def delete_cas(instance: "GuardedSave", expected: int, using: str) -> tuple[int, dict[str, int]]:
    """Delete in one statement where Django would; else lock the row with its version first."""
    field, pk = instance._version_field, instance.pk
    row: Any = field.model._base_manager.using(using).filter(pk=pk)
    compare(row, field, expected)
    if pk is not None and Collector(using=using).can_fast_delete(instance):
        if not (count := row._raw_delete(using)):
            raise conflict(instance, expected, using)
        setattr(instance, instance._meta.pk.attname, None)  # as Django's delete() leaves it
        return count, {instance._meta.concrete_model._meta.label: count}
    # What hangs on the row is collected and deleted in several statements: from the first of them
    # on nobody else may write it.
    with transaction.atomic(using=using):
        if pk is not None and not row.select_for_update().values_list("pk").first():
            raise conflict(instance, expected, using)
        return instance.delete(using=using)
