"""The result of one examination."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "info", "warning", "error"]

LEVELS: tuple[Level, ...] = ("ok", "info", "warning", "error")
"""The worst comes last."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of the doctor.

    Attributes:
        id: the name of what was examined; stable, for scripts.
        level: ``ok``; ``info``, worth knowing; ``warning``, a problem at some later time, or one
            that could not be examined; ``error``, locks, leases or requests fail, or protect
            nothing.
        found: what was found.
        follows: the consequence; empty where the level is ``ok``.
        do: what to do about it; empty if nothing needs to be done.
    """

    id: str
    level: Level
    found: str
    follows: str = ""
    do: str = ""
