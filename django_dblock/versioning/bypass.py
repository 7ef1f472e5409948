"""Maintenance without versions, for one context and never for the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_bypassed: ContextVar[bool] = ContextVar("django_dblock_bypassed", default=False)


@contextmanager
def bypass_versions() -> Iterator[None]:
    """Write as if the models had no version: no comparison, no bump.

    Use it for maintenance that changes nothing that an editor sees, such as filling a new column.
    The effect ends with the block, and is limited to this thread or task: other threads' saves stay
    guarded.

    Does not guarantee that no concurrent write is lost: a ``save()`` in the block overwrites.
    ``save_cas()``, ``delete_cas()`` and ``bulk_save_cas()`` compare all the same.

    Source: PEP 567, context variables.
    """
    token = _bypassed.set(True)
    try:
        yield
    finally:
        _bypassed.reset(token)


def bypassed() -> bool:
    """Return whether this thread or task is inside :func:`bypass_versions`."""
    return _bypassed.get()
