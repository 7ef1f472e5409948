"""Delete a row only if it has the version somebody saw."""

from typing import Any

from django.db import transaction
from django.db.models.deletion import Collector

from django_dblock.versioning.attempt import compare
from django_dblock.versioning.conflict import conflict
from django_dblock.versioning.guarded import GuardedSave


def delete_cas(instance: GuardedSave, expected: int, using: str) -> tuple[int, dict[str, int]]:
    """Delete in one statement where Django would; else lock the row with its version first."""
    field, there = instance._version_field, instance._is_pk_set()
    row: Any = field.model._base_manager.using(using).filter(pk=instance._version_pk)
    compare(row, field, expected)
    own = type(instance).delete is not GuardedSave.delete  # it may have more to do
    if there and not own and Collector(using=using).can_fast_delete(instance):
        with transaction.mark_for_rollback_on_error(using=using):
            count = row._raw_delete(using)
        if not count:
            raise conflict(instance, expected, using)
        setattr(instance, instance._meta.pk.attname, None)  # as Django's delete() leaves it
        return count, {instance._version_field.model._meta.label: count}
    # What hangs on the row is collected and deleted in several statements: from the first of them
    # on nobody else may write it.
    with transaction.atomic(using=using):
        if there and not row.select_for_update().values_list("pk").first():
            raise conflict(instance, expected, using)
        return instance.delete(using=using)
