"""A caller would wait for itself."""

from typing import Any

from django_dblock.exceptions.base import LockError


class SelfDeadlock(LockError, RuntimeError):
    """The lock was not requested: this task holds it already, and would wait for itself."""

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
