"""Zero rows: find out what happened, and say it."""

from typing import TYPE_CHECKING, Any

from django_dblock.exceptions import StaleObject
from django_dblock.signals import stale_object
from django_dblock.versioning import origin as origins

if TYPE_CHECKING:
    from django_dblock.versioning.guarded import GuardedSave


def conflict(  # noqa: PLR0913 - facts for the error
    instance: "GuardedSave",
    expected: int | None,
    using: str,
    *,
    gone: bool = False,
    carried: bool = True,
    rolled_back: bool = False,
) -> StaleObject:
    """Look at the row that was not written, tell the signal, and return the error to raise."""
    field = instance._version_field
    rows: Any = field.model._base_manager.using(using)
    rows = rows.filter(pk=instance._version_pk).values_list(field.attname, flat=True)
    actual = None if gone else rows.first()
    read = _read_with(instance, field.attname) if carried else None
    if read == expected:
        read = None
    ours = carried and read is None
    if ours and actual is not None and expected is not None and actual < expected:
        rolled_back = True  # versions only grow, so this one never came to be
    error = StaleObject(
        instance=instance,
        expected=expected,
        actual=actual,
        using=using,
        rolled_back=rolled_back,
        read=read,
    )
    stale_object.send_robust(type(instance), error=error)
    return error


def _read_with(instance: "GuardedSave", name: str) -> int | None:
    """Return the version that it was read with, unless it was given another to compare with."""
    if "cas_on_save" in instance.__dict__:  # by expect_version()
        return None
    return origins.original(instance).get(name)
