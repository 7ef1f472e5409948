"""A round from start to verdict."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shop.demo.stage import Stage

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a round: figures to show, invariants and whether they held.

    Attributes:
        worked: whether it did what it could, so that it proves something.
        lost: what was lost, in a few words; for the demo's last lines.
    """

    figures: dict[str, str]
    invariants: dict[str, bool]
    worked: bool
    lost: str = ""

    @property
    def kept(self) -> bool:
        return all(self.invariants.values())


def milliseconds(seconds: tuple[float, ...]) -> str:
    """Return times as a figure to show."""
    return " / ".join(f"{value * 1000:.0f}" for value in seconds) + " ms"


class Round(Protocol):
    title: str
    guard: str

    def unguarded(self, stage: "Stage", attempt: int) -> Run: ...

    def guarded(self, stage: "Stage") -> Run: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both runs of a round, and what they prove."""

    round: Round
    unguarded: Run
    guarded: Run

    @property
    def failure(self) -> str | None:
        """Why the round proves nothing, or worse; None where it proves its point."""
        guard = self.round.guard
        if not self.guarded.kept:
            broken = [name for name, held in self.guarded.invariants.items() if not held]
            return f"BROKEN under {guard}: {', '.join(broken)}."
        if not self.guarded.worked:
            return f"The run under {guard} did not do what it could: it proves nothing."
        if self.unguarded.kept:
            return (
                f"The attack proves nothing: without {guard} no invariant broke, in {ATTEMPTS} "
                f"attempts. Try more --buyers, --edits, --payments, --processes or --threads."
            )
        return None


def play(played: Round, stage: "Stage") -> Verdict:
    """Attack without the guard until something breaks, then with it."""
    stage.report.title(played)
    for attempt in range(1, ATTEMPTS + 1):
        unguarded = played.unguarded(stage, attempt)
        if not unguarded.kept:
            break
        stage.report.say(f"Nothing broke without the guard (attempt {attempt} of {ATTEMPTS}).")
    return Verdict(played, unguarded, played.guarded(stage))
