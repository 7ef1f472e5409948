"""What a decorated function is guarded by, for the system checks of views. A leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

_GUARDS = "_dblock_guards"


class Guard(NamedTuple):
    """One decorator of ours.

    Attributes:
        name: as in the code, ``advisory_lock``.
        outside: whether it must not be reached inside a transaction.
        using: the alias, as it was given.
    """

    name: str
    outside: bool
    using: str | None


def mark(guarded: Callable[..., Any], inner: Callable[..., Any], guard: Guard) -> None:
    """Write on the function that it has this guard, besides those of what it wraps."""
    vars(guarded)[_GUARDS] = (*guards_of(inner), guard)


def guards_of(function: object) -> tuple[Guard, ...]:
    """Return what stands around it; ``functools.wraps`` of others hands it on."""
    found: tuple[Guard, ...] = getattr(function, _GUARDS, ())
    return found
