"""A run: the trials of a plan, one after the other, and what they add up to."""

import argparse
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults import price, report
from tests.faults.clock import now
from tests.faults.needed import missing
from tests.faults.plan import CAUGHT, FAILS, HOLDS, Trial, plan
from tests.faults.services import Services, versions
from tests.faults.trial import Running, broken

_SMOKE = 1.0
"""Seconds of a trial that only shows that it still runs."""

_ATTEMPTS = 6
"""How often a peer, or one of ours that is broken, may get through before it counts as right; and
how often ours may have been idle. Each attempt is longer than the last."""


def everything(
    arguments: argparse.Namespace, services: Services, *, say: Callable[[str], None]
) -> int:
    """Run the plan; write the report; return the exit status."""
    trials = [
        trial
        for trial in plan(arguments.minutes, arguments.seed, versions(), arguments.seconds)
        if _wanted(trial, arguments)
    ]
    if arguments.smoke:
        trials = _one_of_each(trials)
    for trial in trials:
        if reason := missing(trial):
            services.left_out[f"{trial.system} × {trial.nemesis}"] = reason
    trials = [trial for trial in trials if not missing(trial)]
    for what, reason in services.left_out.items():
        say(f"left out: {what}: {reason}")
    output = arguments.output
    shutil.rmtree(output, ignore_errors=True)
    say(f"{len(trials)} trials, seed {arguments.seed}")
    results: list[dict[str, Any]] = []
    prices = []
    try:
        for trial in trials:
            for each in _attempts(trial):
                result = _run(each, services, output)
                result["replay"] = (
                    f"python -m tests.faults {report.length(arguments)}"
                    f" --seed {arguments.seed} --trial {trial.number}"
                )
                results.append(result)
                say(_line(result))
                if report.has_shown(result):
                    break
        prices = [] if arguments.smoke else _prices(services, versions()[0])
    except (KeyboardInterrupt, SystemExit):
        services.left_out["the rest"] = f"stopped after {len(results)} of {len(trials)} trials"
        raise
    finally:
        found = report.write(results, prices, arguments, services, output)
    for sentence in found["failures"]:
        say(sentence)
    say(report.summary(found))
    return 1 if found["failures"] else 0


def _run(trial: Trial, services: Services, output: Path) -> dict[str, Any]:
    """Run one trial; whatever happens to it is its own error, and the run goes on."""
    started = now()
    try:
        return Running(trial, services, output / "histories" / trial.name).run()
    except Exception:  # noqa: BLE001 - told in the report
        return broken(trial, [traceback.format_exc()], started)


def _prices(services: Services, version: int) -> list[dict[str, Any]]:
    try:
        return price.measure(services.postgres(version), version)
    except Exception as error:  # noqa: BLE001 - an hour's results are not lost for it
        services.left_out["a frozen holder's price"] = repr(error)
        return []


def _attempts(trial: Trial) -> Iterator[Trial]:
    """The trial, and further ones for as long as it has not shown what it should."""
    yield trial
    for attempt in range(2, _ATTEMPTS + 1):
        yield replace(
            trial,
            attempt=attempt,
            seconds=trial.seconds * attempt,
            seed=f"{trial.seed} attempt {attempt}",
        )


def _wanted(trial: Trial, arguments: argparse.Namespace) -> bool:
    return (
        (not arguments.workload or trial.workload in arguments.workload)
        and (not arguments.nemesis or trial.nemesis in arguments.nemesis)
        and (not arguments.system or trial.system in arguments.system)
        and (not arguments.backend or trial.backend in arguments.backend)
        and (not arguments.trial or trial.number in arguments.trial)
        and (not arguments.mutations or trial.expected == CAUGHT)
    )


def _one_of_each(trials: list[Trial]) -> list[Trial]:
    """The first trial of each workload of ours, cut short, on the newest server alone."""
    first: dict[str, Trial] = {}
    for trial in trials:
        if trial.expected == HOLDS and trial.workload != "shop":
            first.setdefault(trial.workload, trial)
    return [replace(trial, seconds=_SMOKE, version=versions()[0]) for trial in first.values()]


def _line(result: dict[str, Any]) -> str:
    violated = sum(violation["count"] for violation in result["violations"])
    mark = {HOLDS: "", FAILS: " (peer)", CAUGHT: f" ({result['mutation']})"}[result["expected"]]
    faults = ", ".join(f"{number} {kind}" for kind, number in result["faults"].items())
    takeovers = result.get("takeovers")
    taken = "" if takeovers is None else f"{takeovers} takeovers; "
    return (
        f"{result['number']:>4}  {result['system']}{mark} × {result['workload']} × "
        f"{result['nemesis']}, {result['backend']}, PostgreSQL {result['version']}: "
        f"{result['operations']} operations "
        f"({result['outcomes'].get('ok', 0)} ok, {result['outcomes'].get('unknown', 0)} unknown), "
        f"{faults or 'no faults'}; {taken}{violated} violations"
        + "".join(f"\n      {v['invariant']}: {v['text']}" for v in result["violations"])
        + "".join(
            f"\n      {error}"
            for error in sorted({[*e.splitlines(), ""][-2:][0] for e in result["errors"]})
        )
    )
