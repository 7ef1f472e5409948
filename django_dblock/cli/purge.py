"""``dblock purge``: remove the rows of leases that are long idle, and of expired requests."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.cli.console import note_unreadable, printable, progress_bar
from django_dblock.coordination import latch
from django_dblock.fencing import operations as fencing
from django_dblock.idempotency import operations as idempotency

_KINDS = ("fenced", "latches", "idempotency")


@dataclass(frozen=True, slots=True)
class _Job:
    """One kind of rows: its name, and how the rows are counted and removed."""

    what: str
    found_as: str
    count: Callable[[], int]
    batches: Callable[[], Iterator[int]]


def add_arguments(parser: CommandParser) -> None:
    """Add the kind, the idle time and the size of a batch."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--kind", choices=_KINDS, help="what to clean up; everything if not given")
    parser.add_argument(
        "--idle",
        type=float,
        default=fencing.MONTH,
        metavar="SECONDS",
        help="how long a lock must have been idle; 30 days if not given, an hour at least",
    )
    parser.add_argument(
        "--keep-abandoned",
        action="store_true",
        help="keep expired requests whose worker was lost, for an operator to examine",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=idempotency.BATCH,
        metavar="ROWS",
        help=f"how many rows to remove in one commit; {idempotency.BATCH:,} if not given",
    )
    parser.add_argument("--dry-run", action="store_true", help="only count, remove nothing")


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Remove the rows in small commits, skip rows in use, and print how many were removed.

    Raises:
        CommandError: ``--idle`` or ``--batch`` is out of range. Or rows could not be removed, as
            the role has no right to it, or there is no table; rows of other kinds were removed.
    """
    if options["batch"] < 1:
        raise CommandError(f"--batch {options['batch']}: at least 1 row goes in a commit.")
    if not fencing.HOUR <= options["idle"] < inf:
        raise CommandError(f"--idle {options['idle']}: after an hour at the earliest.")
    options = {**options, "notes": []}
    done: dict[str, dict[str, int]] = {}
    for kind, job in _jobs(options).items():
        if options["kind"] in (None, kind):
            with note_unreadable(kind, options, "purged"):
                done[kind] = _done(stdout, job, options)
    if options["json"]:
        stdout.write(json.dumps(done))
    if options["notes"]:
        raise CommandError(printable(" ".join(options["notes"])))
    if not done:
        raise CommandError(
            "There is no table of django_dblock in this database: run 'manage.py migrate', or pass "
            "--using with the alias of the database where the tables are."
        )


def _jobs(options: dict[str, Any]) -> dict[str, _Job]:
    using, batch, idle = options["using"], options["batch"], options["idle"]
    abandoned = not options["keep_abandoned"]
    return {
        "fenced": _Job(
            "rows of fenced locks",
            "idle",
            partial(fencing.count_idle_fenced_locks, idle=idle, using=using),
            partial(fencing.purge_in_batches, idle=idle, batch=batch, using=using),
        ),
        "latches": _Job(
            "rows of latches",
            "idle",
            partial(latch.count_idle_parts, idle=idle, using=using),
            partial(latch.purge_latches_in_batches, idle=idle, batch=batch, using=using),
        ),
        "idempotency": _Job(
            "expired idempotency keys",
            "expired",
            partial(idempotency.count_expired_idempotency_keys, abandoned=abandoned, using=using),
            partial(idempotency.purge_in_batches, batch=batch, abandoned=abandoned, using=using),
        ),
    }


def _done(stdout: OutputWrapper, job: _Job, options: dict[str, Any]) -> dict[str, int]:
    found, removed = job.count(), 0
    if not options["dry_run"]:
        batches: Iterable[int] = job.batches()
        if not options["json"]:
            batches = progress_bar(stdout, job.what, batches, found)
        removed = sum(batches)
    if not options["json"]:
        if options["dry_run"]:
            stdout.write(f"{found} {job.what} would be removed.")
        else:
            stdout.write(f"{removed} of {found} {job.what} removed.")
    return {job.found_as: found, "removed": removed}
