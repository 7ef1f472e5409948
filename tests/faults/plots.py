"""The report's pictures, as SVG."""

import importlib.util
import re
from io import StringIO
from typing import Any

from tests.faults.around import offsets


def draw(found: dict[str, Any]) -> dict[str, str]:
    """Return the pictures by name; none without matplotlib, for the tables say the same."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    drawn = {
        f"around-{re.sub('[^a-z]+', '-', kind.lower()).strip('-')}": throughput(kind, curve)
        for kind, curve in sorted(found["around"].items())
    }
    return {"losses": losses(found["systems"]), **drawn}


def throughput(kind: str, curve: dict[str, Any]) -> str:
    """Operations a second, and the longest wait, around one kind of fault."""
    figure, axes = _figure(5.2, 2.6)
    axes.plot(offsets(), curve["per_second"], color="#1f6fb4")
    axes.set_ylabel("operations / s", color="#1f6fb4")
    axes.set_ylim(bottom=0)
    axes.axvline(0, color="#8c8c8c", lw=1, ls=":")
    waits = axes.twinx()
    waits.plot(offsets(), curve["longest_wait_ms"], color="#b5453c", lw=1)
    waits.set_ylabel("longest wait, ms", color="#b5453c")
    waits.set_ylim(bottom=0)
    waits.spines[["top"]].set_visible(False)
    axes.set_xlabel("seconds from the fault")
    return _svg(figure, axes, f"{kind} ({curve['faults']:,})")


def losses(rows: list[dict[str, Any]]) -> str:
    """What each system lost, in violations for each thousand operations."""
    figure, axes = _figure(7.5, 0.9 + 0.32 * len(rows))
    rows = [*reversed(rows)]  # the first one on top
    shares = [1000 * row["violations"] / max(1, row["operations"]) for row in rows]
    colours = ["#1f6fb4" if row["ours"] else "#e0a458" for row in rows]
    bars = axes.barh([row["name"] for row in rows], shares, color=colours)
    labels = [f"{row['violations']:,} of {row['operations']:,}" for row in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_xlim(0, 1.3 * max(shares, default=1) + 1)
    axes.set_xlabel("violations in 1,000 operations (blue: ours)")
    return _svg(figure, axes, "Losses by system")


def _figure(width: float, height: float) -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "faults"  # the same figures make the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    return plt.subplots(figsize=(width, height), layout="constrained")


def _svg(figure: Any, axes: Any, title: str) -> str:
    from matplotlib import pyplot as plt

    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    found = StringIO()
    figure.savefig(found, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = found.getvalue()
    return text[text.index("<svg") :]
