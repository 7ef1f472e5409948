"""Bind an instance to the version that a page showed: its saves, and its ``delete()`` as well."""

from django_dblock.versioning.model import VersionedModel


def expect(instance: VersionedModel, version: int) -> None:
    """Compare whatever is done with this instance with the version that somebody saw.

    For code that calls ``save()`` and ``delete()`` itself: formsets, the admin. The delete is
    bound until the instance is written, or becomes another row's.
    """
    instance.expect_version(version)
    instance.__dict__["_version_delete"] = (instance.pk, version)
