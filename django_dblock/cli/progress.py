"""How far a long job is: a bar through ``rich`` where it is installed, else plain numbers."""

from collections.abc import Iterable
from typing import Any

from django.core.management.base import OutputWrapper


def progress_bar(stdout: OutputWrapper, what: str, batches: Iterable[int], total: int) -> Iterable[int]:
    """Show a person how far it is; a file is not told."""
    if not stdout.isatty():
        return batches
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return _counted(stdout, batches, total)
    return _barred(Progress(console=Console(stderr=True), transient=True), what, batches, total)


def _barred(progress: Any, what: str, batches: Iterable[int], total: int) -> Iterable[int]:
    with progress as bar:
        task = bar.add_task(what, total=total)
        for count in batches:
            bar.advance(task, count)
            yield count


def _counted(stdout: OutputWrapper, batches: Iterable[int], total: int) -> Iterable[int]:
    done = 0
    for count in batches:
        done += count
        stdout.write(f"\r{done} of {total}", ending="")
        yield count
    stdout.write("")
