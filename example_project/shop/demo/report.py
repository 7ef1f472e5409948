"""What the demo says: progress while it runs, a table when a round is over."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shop.demo.attack import Answer, Load
from shop.demo.play import Round, Run, Verdict

_PARTS = 4


class Report:
    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def title(self, played: Round) -> None:
        """Print the name of a round before its progress bars."""
        self._console.print()
        self._console.print(f"{played.title}: {played.guard}", style="bold", markup=False)

    @contextmanager
    def progress(
        self, label: str, load: Load, *, crowd: str, good: str
    ) -> Iterator[Callable[[Answer], None]]:
        """Show a bar in a terminal, else a line for each quarter; give what counts an answer.

        Args:
            label: what is running.
            load: how many answers there will be.
            crowd: who is answered, for people.
            good: the kind of answer that they hope for.
        """
        if not self._console.is_terminal:
            yield self._lines(label, load.visits, crowd, good)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("[green]{task.fields[got]} {task.fields[good]}"),
            TextColumn("[dim]{task.fields[refused]} refused"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=load.visits, good=good, got=0, refused=0)
            kinds: Counter[str] = Counter()

            def on_answer(answer: Answer) -> None:
                kinds[answer.kind] += 1
                got = kinds[good]
                bar.update(task, advance=1, got=got, refused=kinds.total() - got)

            yield on_answer

    def _lines(self, label: str, total: int, crowd: str, good: str) -> Callable[[Answer], None]:
        kinds: Counter[str] = Counter()
        self.say(f"{label}: {total} {crowd} …")

        def on_answer(answer: Answer) -> None:
            before = kinds.total() * _PARTS // total
            kinds[answer.kind] += 1
            done = kinds.total()
            if done * _PARTS // total > before:
                self.say(f"{label}: {done}/{total} answered, {kinds[good]} {good}")

        return on_answer

    def verdict(self, verdict: Verdict) -> None:
        """Show both runs of a round side by side."""
        table = Table()
        table.add_column("")
        table.add_column("guard off", justify="right")
        table.add_column("guard on", justify="right")
        for name, off in verdict.unguarded.figures.items():
            table.add_row(name, off, verdict.guarded.figures[name])
        table.add_section()
        for name in verdict.guarded.invariants:
            table.add_row(name, _held(verdict.unguarded, name), _held(verdict.guarded, name))
        self._console.print(table)

    def summary(self, verdicts: list[Verdict]) -> None:
        """Say in two lines what it all came to."""
        for when, runs in (
            ("Without the guards", [verdict.unguarded for verdict in verdicts]),
            ("With them", [verdict.guarded for verdict in verdicts]),
        ):
            self.say(f"{when}: {', '.join(run.lost for run in runs)}.")


def _held(run: Run, invariant: str) -> str:
    return "[green]kept[/]" if run.invariants[invariant] else "[bold red]BROKEN[/]"
