"""One run: set the table, measure what the catalogue names, and judge it."""

from collections.abc import Callable, Collection
from typing import Any

from tests.benchmarks import catalogue, crowd, curves, database_limit, machine, measure, tables
from tests.benchmarks.services import Running
from tests.benchmarks.targets import judged


def everything(
    size_name: str, running: Running, *, only: Collection[str] | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure; return the whole JSON but for its duration."""
    size = measure.SIZES[size_name]
    for what, reason in running.left_out.items():
        say(f"Left out, {what}: {reason}")
    tables.create()
    found: dict[str, Any] = {
        "command": " ".join(
            ["python -m tests.benchmarks", *([] if size_name == "default" else [f"--{size_name}"])]
        ),
        "size": size_name,
        "machine": machine.described(running),
        "versions": machine.versions(),
        "left_out": running.left_out,
        "scenarios": [],
        "crowds": [],
        "curves": [],
        "pgbench": [],
    }
    try:
        for name, scenario in catalogue.SCENARIOS.items():
            if not only or name in only:
                say(f"Measuring {name} …")
                found["scenarios"].append(measure.timed(scenario(), size))
        for name, wanted in catalogue.CROWDS.items():
            if not only or name in only:
                say(f"Measuring {name} …")
                found["crowds"].append(crowd.timed(wanted, size))
        if size.curves and not only:
            say("Measuring the curves …")
            found["curves"] = [curves.by_processes(size), curves.by_keys(size)]
            found["pgbench"] = database_limit.measured(size, running)
    finally:
        tables.close()
    found["targets"] = judged(found)
    return found
