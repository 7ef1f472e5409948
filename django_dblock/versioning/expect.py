"""Bind an instance to the version that a page showed: its saves, and its ``delete()`` as well."""

from typing import Any

from django_dblock.versioning.model import VersionedModel


def expect(instance: VersionedModel, version: int) -> None:
    """Compare whatever is done with this instance with the version that somebody saw.

    For code that calls ``save()`` and ``delete()`` itself: formsets, the admin.
    """
    instance.expect_version(version)

    def delete(using: str | None = None, **_options: Any) -> tuple[int, dict[str, int]]:
        del instance.__dict__["delete"]  # delete_cas() ends in the class's own, where it needs it
        try:
            return instance.delete_cas(expected=version, using=using)
        finally:
            instance.__dict__["delete"] = delete

    instance.__dict__["delete"] = delete
