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
        id: what was looked at; stable, for scripts.
        level: ``ok``; ``info``, worth knowing; ``warning``, it will hurt some day, or can't be
            told; ``error``, locks, leases or requests fail, or protect nothing.
        found: what is there.
        follows: what comes of it; empty where all is well.
        do: what to do about it; empty if nothing.
    """

    id: str
    level: Level
    found: str
    follows: str = ""
    do: str = ""
