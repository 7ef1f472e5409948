"""The report of a run: what was thrown, how often, and what was lost."""

import argparse
import json
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults import around, plots
from tests.faults.checkers import INVARIANTS
from tests.faults.page import page
from tests.faults.plan import CAUGHT, FAILS, HOLDS
from tests.faults.services import Services

_LEAST = 10
"""Operations that must have succeeded in a trial that shows something."""

_SHORT = 2.0
"""Seconds of a trial below which it need not."""

Result = dict[str, Any]


def write(
    results: list[Result],
    prices: list[Result],
    arguments: argparse.Namespace,
    services: Services,
    folder: Path,
) -> dict[str, Any]:
    """Write ``report.json`` beside the histories; return what it says."""
    found = {
        "command": f"python -m tests.faults {length(arguments)} --seed {arguments.seed}",
        "seed": arguments.seed,
        "seconds": round(time.time() - arguments.started, 1),
        "python": platform.python_version(),
        "left_out": services.left_out,
        "invariants": INVARIANTS,
        "blocked_by_a_frozen_holder": prices,
        "totals": totals(results),
        "systems": by_system(results),
        "backends": by_backend(results),
        "failures": failures(results),
        "around": around.curves(result for result in results if result["expected"] == HOLDS),
        "trials": [{**result, "around": None} for result in results],
    }
    for result in found["trials"]:
        del result["around"]  # added up above
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    drawn = plots.draw(found)
    for name, picture in drawn.items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    (folder / "report.html").write_text(page(found, drawn), encoding="utf-8")
    return found


def length(arguments: argparse.Namespace) -> str:
    """Return the options that say how long a run is; a trial's number depends on them."""
    seconds = "" if arguments.seconds is None else f" --seconds {arguments.seconds:g}"
    return f"--minutes {arguments.minutes:g}{seconds}"


def by_system(results: list[Result]) -> list[dict[str, Any]]:
    """Add up each system's trials: ours first, then the peers, then the broken ones."""
    rows: dict[str, dict[str, Any]] = {}
    for result in sorted(results, key=lambda each: (HOLDS, FAILS, CAUGHT).index(each["expected"])):
        name = (
            f"{result['system']}, {result['mutation']}" if result["mutation"] else result["system"]
        )
        row = rows.setdefault(
            name,
            {"name": name, "ours": result["expected"] == HOLDS, "operations": 0, "unknown": 0,
             "faults": 0, "violations": 0},
        )  # fmt: skip
        row["operations"] += result["operations"]
        row["unknown"] += result["outcomes"].get("unknown", 0)
        row["faults"] += sum(result["faults"].values())
        row["violations"] += violated(result)
    return list(rows.values())


def by_backend(results: list[Result]) -> list[dict[str, Any]]:
    """Add up the trials of ours by what stands around the connection, and the mutations caught."""
    rows = []
    for name in dict.fromkeys(result["backend"] for result in results):
        of_name = [result for result in results if result["backend"] == name]
        ours = [result for result in of_name if result["expected"] == HOLDS]
        broken = {result["mutation"] for result in of_name if result["expected"] == CAUGHT}
        caught = {result["mutation"] for result in of_name if violated(result)}
        rows.append(
            {"name": name, "trials": len(ours),
             "operations": sum(result["operations"] for result in ours),
             "faults": sum(sum(result["faults"].values()) for result in ours),
             "violations": sum(map(violated, ours)),
             "mutations": len(broken), "caught": len(broken & caught)},
        )  # fmt: skip
    return sorted(rows, key=lambda row: row["name"])


def totals(results: list[Result]) -> dict[str, Any]:
    """Add up what was done and thrown, ours apart from the others."""
    ours = [result for result in results if result["expected"] == HOLDS]
    faults: Counter[str] = Counter()
    for result in results:
        faults.update(result["faults"])
    ordered: Counter[str] = Counter()
    for result in ours:
        ordered.update(result["ordered"])
    return {
        "trials": len(results),
        "operations": sum(result["operations"] for result in results),
        "faults": dict(faults),
        "operations_of_ours": sum(result["operations"] for result in ours),
        "violations_of_ours": sum(map(violated, ours)),
        "ordered_of_ours": dict(ordered),
    }


def violated(result: Result) -> int:
    return sum(violation["count"] for violation in result["violations"])


def failures(results: list[Result]) -> list[str]:
    """Say what makes the run fail: ours violated, a peer that held, a mutation that got through."""
    found = []
    attempts = Counter(result["number"] for result in results)
    for result in results:
        attempts[result["number"]] -= 1
        what = f"{result['system']} × {result['workload']} × {result['nemesis']}"
        if result["expected"] == HOLDS and result["violations"]:
            found.append(f"VIOLATED: {what}; replay: {result['replay']}")
        if result["expected"] == HOLDS and result["ordered"].get("undecided"):
            found.append(f"UNDECIDED: {what}; replay: {result['replay']}")
        if _is_idle(result) and not attempts[result["number"]]:
            found.append(f"IDLE, so it shows nothing: {what}; replay: {result['replay']}")
        if result["errors"]:
            found.append(f"BROKEN: {what}; replay: {result['replay']}")
    for kind, key, text in (
        (FAILS, "system", "HELD UNEXPECTEDLY"),
        (CAUGHT, "mutation", "NOT CAUGHT"),
    ):
        of_kind = [result for result in results if result["expected"] == kind]
        for name in sorted({result[key] for result in of_kind}):
            held = not any(violated(result) for result in of_kind if result[key] == name)
            found += [f"{text}: {name}"] * held
    return found


def has_shown(result: Result) -> bool:
    """Whether this attempt of a trial showed something, be it that something is broken."""
    if result["violations"] or result["errors"]:
        return True
    return result["expected"] == HOLDS and not _is_idle(result)


def _is_idle(result: Result) -> bool:
    """Whether hardly anything was done, thrown, or taken over where that is what is shown.

    Of a trial cut short that can't be said.
    """
    done = result["outcomes"].get("ok", 0)
    if result["seconds"] < _SHORT:
        return not done
    alone = result["expected"] == HOLDS and result.get("takeovers") == 0
    return done < _LEAST or not result["faults"] or alone


def summary(found: dict[str, Any]) -> str:
    total = found["totals"]
    faults = ", ".join(f"{number:,} {kind}" for kind, number in sorted(total["faults"].items()))
    thrown = sum(total["faults"].values())
    return (
        f"{total['operations']:,} operations and {thrown:,} faults ({faults}) "
        f"in {found['seconds']:.0f} s; ours: {total['operations_of_ours']:,} operations, "
        f"{total['violations_of_ours']} violations."
    )
