"""Layers of boxes with lines between them. Pure: it knows nothing of locks, or of Django.

The method is Sugiyama's, in its plainest form (Sugiyama, Tagawa, Toda: "Methods for Visual
Understanding of Hierarchical System Structures", 1981): turn around what closes a cycle, put each
box behind all that it comes after, sort the layers by the mean of their neighbours, draw.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP_X, GAP_Y, GAP_PARTS, MARGIN = 38, 10, 24, 4
_SWEEPS = 4

Edge = tuple[str, str]
_Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How large a box is."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """Where a box is: its upper left corner."""

    id: str
    layer: int
    x: float
    y: float
    size: Size

    @property
    def middle(self) -> float:
        """How far down its middle is."""
        return self.y + self.size.height / 2


@dataclass(frozen=True, slots=True)
class Line:
    """A line between two boxes, as the ``d`` of an SVG path, from left to right.

    Attributes:
        edge: from where to where it was asked for.
        turned: it closes a cycle, so its end is on the left.
        tip: the point on the right side of the left box, where the line begins.
        end: the point on the left side of the right box.
    """

    edge: Edge
    turned: bool
    path: str
    tip: _Point
    end: _Point


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes and lines, and how large the sheet must be."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: float
    height: float


def lay_out(sizes: Mapping[str, Size], edges: Iterable[Edge]) -> Layout:
    """Return the layout, connected parts below each other, in the order given.

    Args:
        sizes: each box by its id.
        edges: pairs of ids; the second is drawn to the right of the first, unless that can't be.
            Pairs with an unknown id are left out.
    """
    known = [edge for edge in dict.fromkeys(edges) if edge[0] in sizes and edge[1] in sizes]
    boxes: list[Box] = []
    lines: list[Line] = []
    below: float = MARGIN
    for part in _parts(list(sizes), known):
        members = set(part)
        own = [edge for edge in known if edge[0] in members]
        found, drawn, below = _lay_out_part(part, own, sizes, below)
        boxes += found
        lines += drawn
        below += GAP_PARTS
    width = max((box.x + box.size.width for box in boxes), default=0) + MARGIN
    height = max((box.y + box.size.height for box in boxes), default=0) + MARGIN
    return Layout(tuple(boxes), tuple(lines), width, height)


def _parts(ids: Sequence[str], edges: Sequence[Edge]) -> list[list[str]]:
    """Return the connected parts."""
    near: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        near[source].append(target)
        near[target].append(source)
    part_of: dict[str, int] = {}
    count = 0
    for first in ids:
        if first in part_of:
            continue
        part_of[first] = count
        ahead = [first]
        while ahead:
            for other in near[ahead.pop()]:
                if other not in part_of:
                    part_of[other] = count
                    ahead.append(other)
        count += 1
    parts: list[list[str]] = [[] for _ in range(count)]
    for each in ids:
        parts[part_of[each]].append(each)
    return parts


def _lay_out_part(
    ids: Sequence[str], edges: Sequence[Edge], sizes: Mapping[str, Size], top: float
) -> tuple[list[Box], list[Line], float]:
    turned = _closing(ids, edges)
    straight = {edge: (edge[1], edge[0]) if edge in turned else edge for edge in edges}
    forward = [edge for edge in dict.fromkeys(straight.values()) if edge[0] != edge[1]]
    layer_of = _layers(ids, forward)
    all_sizes = dict(sizes)
    ways: dict[Edge, list[str]] = {}
    steps: list[Edge] = []
    for source, target in forward:
        way = [source]
        for layer in range(layer_of[source] + 1, layer_of[target]):
            corner = f"{source}\0{target}\0{layer}"
            layer_of[corner] = layer
            all_sizes[corner] = Size(0, 0)
            way.append(corner)
        way.append(target)
        ways[source, target] = way
        steps += pairwise(way)
    boxes, bottom = _place(_sorted_layers(layer_of, steps), all_sizes, top)
    lines = [
        _line(edge, edge in turned, [boxes[each] for each in ways[straight[edge]]])
        for edge in edges
        if straight[edge] in ways
    ]
    return [boxes[each] for each in ids], lines, bottom


def _closing(ids: Sequence[str], edges: Sequence[Edge]) -> set[Edge]:
    """Return the edges that lead back to where a walk came from; without them there is no cycle."""
    after: dict[str, list[str]] = defaultdict(list)
    entered = set()
    for source, target in edges:
        after[source].append(target)
        entered.add(target)
    closing: set[Edge] = set()
    done: set[str] = set()
    for first in sorted(ids, key=entered.__contains__):  # where nothing leads to comes first
        if first in done:
            continue
        trail = {first}
        walk = [(first, iter(after[first]))]
        while walk:
            here, ahead = walk[-1]
            for there in ahead:
                if there in trail:
                    closing.add((here, there))
                elif there not in done:
                    trail.add(there)
                    walk.append((there, iter(after[there])))
                    break
            else:
                walk.pop()
                trail.discard(here)
                done.add(here)
    return closing


def _layers(ids: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return for each how many are on the longest way to it."""
    after: dict[str, list[str]] = defaultdict(list)
    missing: dict[str, int] = dict.fromkeys(ids, 0)
    for source, target in edges:
        after[source].append(target)
        missing[target] += 1
    layer_of = dict.fromkeys(ids, 0)
    ready = [each for each in ids if not missing[each]]
    while ready:
        here = ready.pop()
        for there in after[here]:
            layer_of[there] = max(layer_of[there], layer_of[here] + 1)
            missing[there] -= 1
            if not missing[there]:
                ready.append(there)
    return layer_of


def _sorted_layers(layer_of: Mapping[str, int], steps: Sequence[Edge]) -> list[list[str]]:
    """Sort each layer by its neighbours, so that few lines cross."""
    before: dict[str, list[str]] = defaultdict(list)
    after: dict[str, list[str]] = defaultdict(list)
    for source, target in steps:
        before[target].append(source)
        after[source].append(target)
    layers: list[list[str]] = [[] for _ in range(max(layer_of.values()) + 1)]
    for each, layer in layer_of.items():
        layers[layer].append(each)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = before if down else after
        order = range(1, len(layers)) if down else range(len(layers) - 2, -1, -1)
        for number in order:
            fixed = layers[number - 1 if down else number + 1]
            place = {each: index for index, each in enumerate(fixed)}
            layers[number].sort(key=lambda each: _mean(place, near[each]))
    return layers


def _mean(place: Mapping[str, int], near: Sequence[str]) -> float:
    return sum(place[each] for each in near) / len(near) if near else 0.0


def _place(
    layers: Sequence[Sequence[str]], sizes: Mapping[str, Size], top: float
) -> tuple[dict[str, Box], float]:
    """Give each layer a column, its boxes below each other around a common middle."""
    heights = [
        sum(sizes[each].height for each in layer) + GAP_Y * (len(layer) - 1) for layer in layers
    ]
    tallest = max(heights)
    boxes: dict[str, Box] = {}
    x: float = MARGIN
    for number, layer in enumerate(layers):
        width = max(sizes[each].width for each in layer)
        y = top + (tallest - heights[number]) / 2
        for each in layer:
            size = sizes[each]
            boxes[each] = Box(each, number, x, y, size if size.width else Size(width, 0))
            y += size.height + GAP_Y
        x += width + GAP_X
    return boxes, top + tallest


def _line(edge: Edge, turned: bool, way: Sequence[Box]) -> Line:  # noqa: FBT001 - data
    tip = (way[0].x + way[0].size.width, way[0].middle)
    end = (way[-1].x, way[-1].middle)
    path = [f"M{tip[0]:.1f} {tip[1]:.1f}"]
    here = tip
    for box in way[1:]:
        there = (box.x, box.middle)
        bend = (there[0] - here[0]) / 2
        path.append(
            f"C{here[0] + bend:.1f} {here[1]:.1f} {there[0] - bend:.1f} {there[1]:.1f} "
            f"{there[0]:.1f} {there[1]:.1f}"
        )
        here = (box.x + box.size.width, box.middle)
        if box is not way[-1]:
            path.append(f"H{here[0]:.1f}")
    return Line(edge, turned, "".join(path), tip, end)
