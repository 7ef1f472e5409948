"""Bump a version and write nothing else."""

from typing import TYPE_CHECKING, Any

from django_dblock.versioning.attempt import compare
from django_dblock.versioning.conflict import conflict

if TYPE_CHECKING:
    from django_dblock.versioning.guarded import GuardedSave


def touch(instance: "GuardedSave", expected: int, using: str) -> None:
    """Write the version after ``expected``, if the row has that."""
    field = instance._version_field
    row: Any = field.model._base_manager.using(using).filter(pk=instance._version_pk)
    compare(row, field, expected)
    if not row._update([(field, None, expected + 1)]):
        raise conflict(instance, expected, using)
    instance._version_settled(expected + 1, using, ())
