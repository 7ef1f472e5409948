"""The results as Markdown tables, which a terminal shows as well as a page does."""

from collections.abc import Iterable, Sequence
from typing import Any

PEERS = {
    "pglock": "÷ pglock",
    "redis": "÷ Redis",
    "select_for_update": "÷ for update",
    "concurrency": "÷ django-concurrency",
}


def markdown(found: dict[str, Any]) -> str:
    """Show the targets first, then every scenario, then the machine."""
    parts = [_targets(found["targets"])]
    parts += map(_scenario, found["scenarios"])
    parts += map(_crowd, found["crowds"])
    parts += map(_curve, found["curves"])
    if found["pgbench"]:
        parts.append(_pgbench(found["pgbench"]))
    for other in found.get("others", []):
        named = {**other["scenario"]}
        named["title"] += f"; Django {other['versions']['Django']}"
        parts.append(_scenario(named))
    parts.append(_machine(found))
    return "\n\n".join(parts) + "\n"


def pictures(found: dict[str, Any]) -> str:
    """Return the pictures of a run, each with its title, as Markdown."""
    files = [(one["name"], one["title"]) for one in (*found["scenarios"], *found["crowds"])]
    files += [(f"curve-{curve['name']}", curve["title"]) for curve in found["curves"]]
    return "\n\n".join(f"![{title}](benchmarks/{name}.svg)" for name, title in files) + "\n"


def _targets(targets: list[dict[str, Any]]) -> str:
    rows = [
        [
            target["title"],
            f"{target['value']:.2f}",
            f"{target['relation']} {target['limit']}",
            "met" if target["met"] else "not met",
        ]
        for target in targets
    ]
    return "## Targets\n\n" + aligned(["target", "value", "wanted", ""], rows)


def _scenario(scenario: dict[str, Any]) -> str:
    peers = [row for row in scenario["rows"] if row["name"] in PEERS]
    header = ["way", "median µs", "quartiles", "min", f"x {scenario['limit']}"]
    header += [PEERS[peer["name"]] for peer in peers]
    redis = any(row["redis_commands"] for row in scenario["rows"])
    rows = [
        [
            row["label"],
            f"{row['median_us']:.0f}",
            "{:.0f} - {:.0f}".format(*row["quartiles_us"]),
            f"{row['min_us']:.0f}",
            f"{row['ratio']:.2f}",
            *(f"{row['ratio'] / peer['ratio']:.2f}" for peer in peers),
            "" if row["statements"] is None else str(row["statements"]),
            *([str(row["redis_commands"])] if redis else []),
        ]
        for row in scenario["rows"]
    ]
    header += ["statements", *(["Redis commands"] if redis else [])]
    return f"## {scenario['title']}\n\n{aligned(header, rows)}"


def _crowd(crowd: dict[str, Any]) -> str:
    peers = [row for row in crowd["rows"] if row["name"] in PEERS]
    header = ["way", "turns/s", "spread", "x raw", *(PEERS[peer["name"]] for peer in peers)]
    header += ["busiest ÷ idlest", "wait p50 ms", "p99 ms", "max ms", "lost updates"]
    rows = [
        [
            row["label"],
            f"{row['turns_per_s']:.0f}",
            "{:.0f} - {:.0f}".format(*row["turns_per_s_spread"]),
            f"{row['ratio'] or 0:.2f}",
            *(f"{row['turns_per_s'] / (peer['turns_per_s'] or 1):.2f}" for peer in peers),
            f"{row['busiest_to_idlest']:.2f}",
            f"{row['wait_p50_ms']:.2f}",
            f"{row['wait_p99_ms']:.2f}",
            f"{row['wait_max_ms']:.0f}",
            str(row["lost_updates"]),
        ]
        for row in crowd["rows"]
    ]
    return f"## {crowd['title']}; {crowd['processes']} processes\n\n{aligned(header, rows)}"


def _curve(curve: dict[str, Any]) -> str:
    rows = [
        [row["label"], *("" if value is None else f"{value:,.6g}" for value in row["values"])]
        for row in curve["rows"]
    ]
    points = [f"{point:,}" for point in curve["points"]]
    header = [f"{curve['unit']}, by {curve['x']}", *points]
    text = f"## {curve['title']}\n\n{aligned(header, rows)}"
    if "run" in curve:
        text += "\n\nMeasured by `{command}`, {seconds:.0f} s.".format(**curve["run"])
    return text


def _pgbench(results: list[dict[str, Any]]) -> str:
    rows = [
        [result["title"], f"{result['turns_per_s']:.0f}", f"{result['latency_us']:.0f}"]
        for result in results
    ]
    return "## The database's own limit, by pgbench\n\n" + aligned(
        ["script", "turns/s", "mean µs"], rows
    )


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, {machine['kernel']}",
        f"an fdatasync of 8 kB takes {machine['fsync_us']:.0f} µs",
        "a round trip takes {default:.0f} µs by unix socket, {latency:.0f} µs with latency".format(
            **machine["round_trip_us"]
        ),
        "PostgreSQL with "
        + ", ".join(f"{name} {value}" for name, value in machine["postgresql_settings"].items()),
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"`{found['command']}`, {found.get('seconds', 0):.0f} s",
        *(f"left out, {what}: {reason}" for what, reason in found["left_out"].items()),
    ]
    return "## Machine\n\n" + "\n".join(f"- {line}" for line in lines)


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def written(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        shown = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]
        return f"| {' | '.join(shown)} |"

    first, *others = widths
    rule = f"|{'-' * (first + 2)}|{'|'.join('-' * (width + 1) + ':' for width in others)}|"
    return "\n".join([written(header), rule, *map(written, rows)])
