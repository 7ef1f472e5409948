"""The layout of boxes and lines, for any graph."""

import re
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from django_dblock.monitor.graph_layout import Size, lay_out

SIZE = Size(100, 40)


def laid(edges, *more):
    names = dict.fromkeys([*more, *(name for edge in edges for name in edge)])
    layout = lay_out(dict.fromkeys(names, SIZE), edges)
    return layout, {box.id: box for box in layout.boxes}


def layers(boxes):
    return {name: box.layer for name, box in boxes.items()}


def test_empty_graph_has_no_boxes_and_no_lines():
    layout, boxes = laid([])
    assert boxes == {}
    assert layout.lines == ()


def test_single_box_is_in_the_first_layer():
    layout, boxes = laid([], "a")
    assert layers(boxes) == {"a": 0}
    assert layout.width > 100
    assert layout.height > 40


def test_each_box_is_right_of_its_predecessors():
    _, boxes = laid([("a", "L"), ("L", "b"), ("b", "M"), ("M", "c"), ("L", "c")])
    assert layers(boxes) == {"a": 0, "L": 1, "b": 2, "M": 3, "c": 4}


def test_fan_is_centred_on_its_root():
    _, boxes = laid([("a", "L"), ("L", "b"), ("L", "c"), ("L", "d")])
    assert boxes["a"].middle == boxes["L"].middle == boxes["c"].middle
    assert boxes["b"].y < boxes["c"].y < boxes["d"].y


def test_separate_parts_are_stacked_in_order():
    _, boxes = laid([("a", "L"), ("L", "b"), ("L", "c"), ("x", "M"), ("M", "y")])
    bottom = max(boxes[name].y for name in "aLbc") + 40
    assert all(boxes[name].y > bottom for name in "xMy")
    assert boxes["x"].x == boxes["a"].x


def test_avoidable_crossings_are_avoided():
    _, boxes = laid([("a", "L"), ("b", "M"), ("x", "L"), ("x", "M"), ("L", "c"), ("M", "d")])
    assert (boxes["L"].y < boxes["M"].y) == (boxes["c"].y < boxes["d"].y)


def test_line_avoids_boxes_between():
    layout, boxes = laid([("a", "L"), ("L", "b"), ("b", "M"), ("M", "c"), ("a", "M")])
    [long] = [line for line in layout.lines if line.edge == ("a", "M")]
    assert boxes["M"].layer - boxes["a"].layer == 3
    heights = {float(y) for y in re.findall(r" (-?[\d.]+)H", long.path)}
    for box in (boxes["L"], boxes["b"]):
        assert all(not box.y < y < box.y + 40 for y in heights)


def test_cycle_has_one_reversed_line():
    layout, boxes = laid([("a", "L"), ("L", "b"), ("b", "M"), ("M", "a")])
    [turned] = [line for line in layout.lines if line.turned]
    assert turned.edge == ("M", "a")
    assert len(layout.lines) == 4
    assert layers(boxes) == {"a": 0, "L": 1, "b": 2, "M": 3}


def test_cycle_begins_at_its_entry():
    layout, boxes = laid([("a", "b"), ("b", "a"), ("x", "a")])
    assert layers(boxes) == {"x": 0, "a": 1, "b": 2}
    assert [line.edge for line in layout.lines if line.turned] == [("b", "a")]


def test_edges_both_ways_turn_one_of_them():
    layout, _ = laid([("a", "b"), ("b", "a")])
    assert sorted(line.turned for line in layout.lines) == [False, True]


def test_self_loops_and_dangling_edges_are_dropped():
    layout = lay_out({"a": SIZE, "b": SIZE}, [("a", "a"), ("a", "x"), ("x", "b"), ("a", "b")])
    assert [line.edge for line in layout.lines] == [("a", "b")]


def test_repeated_edge_is_drawn_once():
    layout, _ = laid([("a", "b"), ("a", "b")])
    assert len(layout.lines) == 1


def test_chain_of_a_thousand_boxes_is_laid_out():
    """No recursion."""
    names = [str(number) for number in range(1000)]
    _, boxes = laid(list(pairwise(names)))
    assert boxes["999"].layer == 999


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=24),
    st.integers(0, 7),
)
def test_boxes_never_overlap(pairs, alone):
    edges = [(str(source), str(target)) for source, target in pairs]
    layout, boxes = laid(edges, str(alone))
    for one, two in combinations(layout.boxes, 2):
        apart = abs(one.x - two.x) >= 100 or abs(one.y - two.y) >= 40
        assert apart, (one, two)
    for box in layout.boxes:
        assert 0 <= box.x <= layout.width - 100
        assert 0 <= box.y <= layout.height - 40
    drawn = {line.edge: line for line in layout.lines}
    assert set(drawn) == {edge for edge in edges if edge[0] != edge[1]}
    for (source, target), line in drawn.items():
        left, right = (target, source) if line.turned else (source, target)
        assert line.tip == (boxes[left].x + 100, boxes[left].middle)
        assert line.end == (boxes[right].x, boxes[right].middle)
        assert line.tip[0] < line.end[0]
