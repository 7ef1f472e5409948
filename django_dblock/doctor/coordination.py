"""Examine whether coordinated work is done: partitions, leaders, workers, latches and jobs."""

import re
from collections.abc import Iterator

from django_dblock.doctor.facts import Facts, Job, StalledLatch, Unattended
from django_dblock.doctor.finding import Finding

_SHOWN = 5

_PERIOD = re.compile(r":(day|week|month|hour|[0-9]+ min|[0-9]+ hours)$")
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_LENGTHS = {"hour": _HOUR, "day": _DAY, "week": 7 * _DAY, "month": 31 * _DAY}

_LATE = 3
"""Periods after which a job counts as not started; three let a daily job pause at weekends."""


def partitions(facts: Facts) -> Iterator[Finding]:
    """Find partitions without an owner although workers are alive."""
    if facts.unattended is None:
        return
    stalled = [each for each in facts.unattended if each.what == "partitions"]
    if not stalled:
        yield Finding("partitions", "ok", "No partition lacks an owner beside live workers.")
        return
    yield Finding(
        "partitions", "warning",
        f"{_listed(map(_unowned, stalled), stalled[0].total)}.",
        "Nobody handles the rows of these partitions. A worker takes partitions between two uses: "
        "a worker hangs in a long use, or has stopped iterating.",
        "List the workers with 'manage.py dblock list', and restart the worker that hangs.",
    )  # fmt: skip


def _unowned(each: Unattended) -> str:
    return (
        f"{each.unowned} of {each.parts} partitions of {each.key!r} have had no owner for up to "
        f"{each.seconds:.0f} s, with {each.workers} live worker(s)"
    )


def unattended(facts: Facts) -> Iterator[Finding]:
    """Find leaderships without a candidate, and partitions without a worker."""
    if facts.unattended is None:
        return
    left = [each for each in facts.unattended if each.what != "partitions"]
    if not left:
        yield Finding(
            "unattended", "ok", "Each leadership and each set of partitions has a live process."
        )
        return
    yield Finding(
        "unattended", "info",
        f"{_listed(map(_left, left), left[0].total)}.",
        "The work of the leader or the workers is not done. If you have removed that work, this "
        "finding is harmless, and 'manage.py dblock purge' removes the name a month later.",
        "If the work is still needed, start its processes.",
    )  # fmt: skip


def _left(each: Unattended) -> str:
    if each.what == "leader":
        return f"Nobody has led {each.key!r} for {each.seconds:.0f} s, and nobody campaigns"
    return f"No worker of {each.key!r} has been alive for {each.seconds:.0f} s"


def latches(facts: Facts) -> Iterator[Finding]:
    """Find latches that somebody waits for, and of which no part comes any more."""
    if facts.latches is None:
        return
    if not facts.latches:
        yield Finding("latches", "ok", "No latch that somebody waits for stands still.")
        return
    yield Finding(
        "latches", "warning",
        f"{_listed(map(_closed, facts.latches), facts.latches[0].total)}.",
        "A part was never started, or its transaction was rolled back; or parts and waiters "
        "give different numbers of parties. The waiters wait until their timeouts.",
        "Find out which part is missing (waiting_for, if parties names the parts), and run it "
        "again.",
    )  # fmt: skip


def _closed(each: StalledLatch) -> str:
    return (
        f"{each.waiting} wait(s) for the latch {each.name!r}, {each.parts} part(s) of which are "
        f"done, the latest {each.seconds:.0f} s ago"
    )


def jobs(facts: Facts) -> Iterator[Finding]:
    """Find runs of ``once_per`` jobs that ended without a result, and jobs that nobody starts."""
    if facts.jobs is None:
        return
    stuck = [job for job in facts.jobs if job.what == "stuck"]
    late = [job for job in facts.jobs if job.what == "latest" and _is_late(job)]
    if stuck:
        texts = (f"{job.name} has had no worker for {job.seconds:.0f} s" for job in stuck)
        yield Finding(
            "jobs", "warning",
            f"{_listed(texts, stuck[0].total)}.",
            "The run died or failed, and no call has repeated it: its period has no result.",
            "Call the job again, or its run_for() if the period is over. With "
            "on_abandoned='refuse', decide with 'manage.py dblock release --request'.",
        )  # fmt: skip
    elif late:
        texts = (f"{job.name} last finished {job.seconds:.0f} s ago" for job in late)
        yield Finding(
            "jobs", "info",
            f"{_listed(texts, len(late))}.",
            f"No run has finished for more than {_LATE} periods. If you have removed the job, this "
            f"finding is harmless.",
            "If the job is still needed, check what starts the job; missed() lists the periods.",
        )  # fmt: skip
    else:
        yield Finding("jobs", "ok", "No run of a once_per job is unfinished, and no job is late.")


def _is_late(job: Job) -> bool:
    """Return whether the latest finished run is more than three periods old."""
    found = _PERIOD.search(job.name)
    if found is None:
        return False
    number, _, unit = found[1].partition(" ")
    length = int(number) * (_HOUR if unit == "hours" else _MINUTE) if unit else _LENGTHS[number]
    return job.seconds > _LATE * length


def _listed(texts: Iterator[str], total: int) -> str:
    shown = [text for _, text in zip(range(_SHOWN), texts, strict=False)]
    more = total - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)
