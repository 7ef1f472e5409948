"""One run: set the table, measure what the catalogue names, and judge it."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from tests.benchmarks import (
    catalogue,
    crowd,
    curves,
    database_limit,
    machine,
    measure,
    over_http,
    tables,
)
from tests.benchmarks.services import Running
from tests.benchmarks.targets import judged


def everything(
    size_name: str, running: Running, *, only: Collection[str] | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure; return the whole JSON but for its duration."""
    size = measure.SIZES[size_name]
    if not over_http.is_possible():
        running.left_out["gunicorn"] = "gunicorn is not installed (the group 'bench' has it)"
    for what, reason in running.left_out.items():
        say(f"Left out, {what}: {reason}")
    tables.create()
    found: dict[str, Any] = {
        "command": " ".join(
            [
                "python -m tests.benchmarks",
                *([] if size_name == "default" else [f"--{size_name}"]),
                *(f"--only {name}" for name in only or ()),
            ]
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
        for part, name, measured in _parts(size):
            if not only or name in only:
                say(f"Measuring {name} …")
                found[part] += measured()
        if size.pgbench and not only:
            found["pgbench"] = database_limit.measured(size, running)
    finally:
        tables.close()
    found["targets"] = judged(found)
    return found


def _parts(size: measure.Size) -> Iterator[tuple[str, str, Callable[[], list[dict[str, Any]]]]]:
    """Yield the part of the JSON, the name and what measures, in the order of the run."""
    for name, scenario in catalogue.SCENARIOS.items():
        yield "scenarios", name, partial(_scenario, scenario, size)
    for name, wanted in catalogue.CROWDS.items():
        yield "crowds", name, partial(_crowd, wanted, size)
    if over_http.is_possible():
        for name, clients in (("http-alone", 1), ("http", size.processes)):
            yield "crowds", name, partial(_over_http, size, clients)
    for name, measured in curves.CURVES.items():
        yield "curves", name, partial(measured, size)


def _scenario(scenario: Callable[[], measure.Scenario], size: measure.Size) -> list[dict[str, Any]]:
    return [measure.timed(scenario(), size)]


def _crowd(wanted: crowd.Crowd, size: measure.Size) -> list[dict[str, Any]]:
    return [crowd.timed(wanted, size)]


def _over_http(size: measure.Size, clients: int) -> list[dict[str, Any]]:
    return [over_http.timed(size, clients)]
