"""The report as one HTML file, with nothing fetched from elsewhere."""

from html import escape
from typing import Any

from tests.faults.plan import CAUGHT, FAILS, HOLDS

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem;
border-bottom: 1px solid #ddd; vertical-align: top } td.n { text-align: right }
.bad { color: #b5453c; font-weight: 600 } .good { color: #3a7d44 } code { font-size: 13px }
.plots { display: flex; flex-wrap: wrap } .plots svg { width: 33rem; height: auto; max-width: 100% }
"""


def page(found: dict[str, Any], pictures: dict[str, str]) -> str:
    """Return the whole page, with the pictures in it."""
    total = found["totals"]
    verdict = (
        "<p class=bad>" + "<br>".join(map(escape, found["failures"])) + "</p>"
        if found["failures"]
        else "<p class=good>Ours: no violation. Every peer that is expected to fail did, and every "
        "mutation was caught.</p>"
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>What was thrown at it</title>"
        f"<style>{_STYLE}</style><h1>What was thrown at it</h1>{verdict}"
        f"<p>{total['operations']:,} operations and {sum(total['faults'].values()):,} faults in "
        f"{total['trials']} trials, {found['seconds']:.0f} s; of these through ours "
        f"{total['operations_of_ours']:,} operations, {total['violations_of_ours']} violations."
        f"</p>{_ordered(total['ordered_of_ours'])}"
        f"<p>Made by <code>{escape(found['command'])}</code></p>"
        + "".join(
            f"<p>Left out: {escape(f'{what}: {why}')}" for what, why in found["left_out"].items()
        )
        + _faults(total["faults"])
        + "<h2>By system</h2>"
        + pictures.get("losses", "")
        + _systems(found["systems"])
        + "<h2>By backend (ours)</h2><p>What stands around Django's connection, drawn from the"
        " trial's seed.</p>"
        + _table(_BACKEND_HEADS, [row.values() for row in found["backends"]])
        + "<h2>Where ours pays</h2><p>How long a frozen holder of an advisory lock blocks the next"
        " (it was let go on after 3 s):</p>"
        + _table(("", "s"), [each.values() for each in found["blocked_by_a_frozen_holder"]])
        + "<h2>Around each fault (ours)</h2><div class=plots>"
        + "".join(picture for name, picture in pictures.items() if name != "losses")
        + "</div><h2>Invariants</h2>"
        + _table(("", ""), [(number, text) for number, text in found["invariants"].items()])
        + "<h2>Trials</h2>"
        + _trials(found["trials"])
        + "</html>\n"
    )


_BACKEND_HEADS = (
    "backend", "trials", "operations", "faults", "violations", "mutations", "caught",
)  # fmt: skip


def _ordered(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    return (
        f"<p>An order that explains every answer was looked for in {counts['operations']:,} "
        f"operations on leases, in {counts['windows']:,} windows, of which "
        f"{counts['undecided']:,} are undecided.</p>"
    )


def _faults(faults: dict[str, int]) -> str:
    return "<h2>Faults</h2>" + _table(("kind", "number"), sorted(faults.items()))


def _systems(systems: list[dict[str, Any]]) -> str:
    rows = [
        (row["name"], row["operations"], row["unknown"], row["faults"], row["violations"])
        for row in systems
    ]
    return _table(("system", "operations", "unknown", "faults", "violations"), rows)


def _trials(trials: list[dict[str, Any]]) -> str:
    kinds = {HOLDS: "ours", FAILS: "peer", CAUGHT: "broken"}
    rows = [
        (
            result["number"], kinds[result["expected"]],
            f"{result['system']} {result['mutation']}", result["workload"], result["nemesis"],
            result["version"], result["backend"], result["operations"],
            sum(result["faults"].values()),
            "; ".join(violation["text"] for violation in result["violations"]),
            result["replay"],
        )
        for result in trials
    ]  # fmt: skip
    heads = (
        "", "", "system", "workload", "nemesis", "PostgreSQL", "backend", "operations", "faults",
        "violations", "replay",
    )  # fmt: skip
    return _table(heads, rows)


def _table(heads: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{escape(each)}" for each in heads)
    body = "".join("<tr>" + "".join(map(_cell, row)) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"<td class=n>{value:,}"
    return f"<td>{escape(str(value))}"
