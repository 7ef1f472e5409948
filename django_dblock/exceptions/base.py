"""The base classes of all errors."""

from typing import Any


class DblockError(Exception):
    """Base of all errors raised by django_dblock. Picklable, attributes included."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[DblockError], args: tuple[Any, ...], data: dict[str, Any]) -> DblockError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(data)
    return error


class LockError(DblockError):
    """A lock was not acquired, or was lost.

    Attributes:
        keys: the requested keys, each a tuple of parts as the caller gave them.
        name: the keys as text, for example ``inventory:sku-1``.
        using: the database alias.
    """

    def __init__(
        self, message: str, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str
    ) -> None:
        super().__init__(message)
        self.keys = keys
        self.name = name
        self.using = using

    @property
    def key(self) -> tuple[Any, ...] | None:
        """The key if exactly one was requested, else None."""
        return self.keys[0] if len(self.keys) == 1 else None
