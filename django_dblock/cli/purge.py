"""``dblock purge``: remove the rows of fenced locks that nobody has had for long."""

import json
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.fencing.operate import (
    BATCH,
    MONTH,
    count_idle_fenced_locks,
    purge_in_batches,
)


def add_arguments(parser: CommandParser) -> None:
    """Take how long is long, and how much to do at once."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--kind", choices=["fenced"], default="fenced", help="what to clean up")
    parser.add_argument(
        "--idle",
        type=float,
        default=MONTH,
        metavar="SECONDS",
        help="how long nobody must have had it; 30 days if not given, an hour at least",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=BATCH,
        metavar="ROWS",
        help=f"how many rows to remove in one commit; {BATCH:,} if not given",
    )
    parser.add_argument("--dry-run", action="store_true", help="only count, remove nothing")


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Remove the rows in small commits, pass over those in use, and say how many went.

    Raises:
        CommandError: ``--idle`` or ``--batch`` is too small.
    """
    idle, using = options["idle"], options["using"]
    if options["batch"] < 1:
        raise CommandError(f"--batch {options['batch']}: at least 1 row goes in a commit.")
    try:
        found = count_idle_fenced_locks(idle=idle, using=using)
    except ValueError as error:
        raise CommandError(str(error)) from error
    removed = 0
    if not options["dry_run"]:
        batches = purge_in_batches(idle=idle, batch=options["batch"], using=using)
        removed = sum(_shown(stdout, batches, found))
    if options["json"]:
        stdout.write(json.dumps({"fenced": {"idle": found, "removed": removed}}))
    elif options["dry_run"]:
        stdout.write(f"{found} rows of fenced locks would be removed.")
    else:
        stdout.write(f"{removed} of {found} rows of fenced locks removed.")


def _shown(stdout: OutputWrapper, batches: Iterable[int], total: int) -> Iterable[int]:
    """Show a person how far it is; a file is not told."""
    if not stdout.isatty():
        return batches
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return _counted(stdout, batches, total)
    return _barred(Progress(console=Console(stderr=True), transient=True), batches, total)


def _barred(progress: Any, batches: Iterable[int], total: int) -> Iterable[int]:
    with progress as bar:
        task = bar.add_task("fenced locks", total=total)
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
