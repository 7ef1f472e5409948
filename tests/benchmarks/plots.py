"""The results as pictures: one for each scenario, each crowd and each curve."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

mpl.rcParams["svg.fonttype"] = "none"  # the browser's fonts: a picture takes a few kilobytes
mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same picture of the same figures

LIMIT, OURS, PEER = "#8c8c8c", "#1f6fb4", "#e0a458"
LIMITS = ("raw", "bare", "by-hand", "hand", "psycopg", "statement", "silent", "unlocked")
"""How the names begin of what is not ours and no peer, beside the first row of each scenario."""

COLOURS = {
    "raw": LIMIT,
    "hand": LIMIT,
    "by hand": LIMIT,
    "ours": OURS,
    "woken": OURS,
    "advisory by hand": "#5a9367",
    "advisory_lock": OURS,
    "pglock": PEER,
    "redis": "#b5453c",
    "select_for_update": "#5a9367",
}


def draw(found: dict[str, Any], folder: Path) -> None:
    """Write ``NAME.svg`` for each of them."""
    for scenario in found["scenarios"]:
        _scenario(scenario, folder / f"{scenario['name']}.svg")
    for crowd in found["crowds"]:
        _crowd(crowd, folder / f"{crowd['name']}.svg")
    for curve in found["curves"]:
        _curve(curve, folder / f"curve-{curve['name']}.svg")


def _colours(rows: list[dict[str, Any]]) -> list[str]:
    return [
        PEER if row.get("peer") else LIMIT if not n or row["name"].startswith(LIMITS) else OURS
        for n, row in enumerate(rows)
    ]


def _scenario(scenario: dict[str, Any], path: Path) -> None:
    rows = scenario["rows"][::-1]  # the first one on top
    colours = _colours(scenario["rows"])[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    medians = [row["median_us"] for row in rows]
    errors = [
        [max(0, row["median_us"] - row["quartiles_us"][0]) for row in rows],
        [max(0, row["quartiles_us"][1] - row["median_us"]) for row in rows],
    ]
    axes.barh(
        [row["label"] for row in rows], medians, xerr=errors,
        color=colours, error_kw={"lw": 1, "capsize": 2},
    )  # fmt: skip
    for place, row in enumerate(rows):
        axes.annotate(
            f"{row['median_us']:,.0f} µs   x {row['ratio']:.2f}",
            (row["quartiles_us"][1], place), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(0, max(row["quartiles_us"][1] for row in rows) * 1.25)
    axes.set_xlabel("µs, median and quartiles (grey: limits, blue: ours, yellow: peers)")
    _finish(figure, axes, scenario["title"], path)


def _crowd(crowd: dict[str, Any], path: Path) -> None:
    rows = crowd["rows"][::-1]
    colours = _colours(crowd["rows"])[::-1]
    labels = [row["label"] for row in rows]
    size = (11, 1.4 + 0.45 * len(rows))
    figure, (speed, waits) = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    bars = speed.barh(labels, [row["turns_per_s"] for row in rows], color=colours)
    speed.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=9)
    speed.set_xlim(0, 1.2 * max(row["turns_per_s"] for row in rows) + 1)
    speed.set_xlabel("turns per second")
    for place, row in enumerate(rows):
        low, high = (max(0.01, row[name]) for name in ("wait_p50_ms", "wait_p99_ms"))
        waits.plot([low, high], [place, place], color=colours[place], lw=3, marker="o")
        waits.annotate(
            f"{low:,.1f} … {high:,.1f}   busiest ÷ idlest {row['busiest_to_idlest']:.1f}",
            (low, place), xytext=(0, 7), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    waits.set_xscale("log")
    waits.xaxis.set_major_formatter("{x:g}")
    waits.set_xlim(right=waits.get_xlim()[1] * 8)
    waits.set_ylim(-0.6, len(rows) - 0.3)
    waits.set_xlabel("wait in ms, p50 to p99")
    waits.spines[["top", "right"]].set_visible(False)
    _finish(figure, speed, f"{crowd['title']}; {crowd['processes']} processes", path)


def _curve(curve: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for row in curve["rows"]:
        axes.plot(
            curve["points"], row["values"],
            marker="o", label=row["label"], color=COLOURS.get(row["name"]),
        )  # fmt: skip
    if len(curve["points"]) > 1:
        axes.set_xscale("log", base=2 if curve["points"][-1] < 100 else 10)
    axes.set_xticks(curve["points"], [f"{point:,}" for point in curve["points"]])
    values = [value for row in curve["rows"] for value in row["values"] if value]
    if values and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(curve["x"])
    axes.set_ylabel(curve["unit"])
    axes.legend(frameon=False)
    _finish(figure, axes, curve["title"], path)


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    figure.suptitle(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
