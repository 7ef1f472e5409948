"""A caller would wait for itself."""

from typing import Any

from django_dblock.exceptions.base import LockError


class SelfDeadlock(LockError, RuntimeError):
    """This thread or task holds the lock already, and would wait for itself. Nothing was locked.

    Attributes:
        act: what the caller tried to do with the lock, in words.
        advice: what to do instead, in words.
    """

    def __init__(
        self, *, keys: tuple[tuple[Any, ...], ...], name: str, using: str, act: str, advice: str
    ) -> None:
        super().__init__(
            f"{name} on database {using!r} can't be {act}: this task would wait for itself. "
            f"{advice}",
            keys=keys,
            name=name,
            using=using,
        )
        self.act = act
        self.advice = advice
