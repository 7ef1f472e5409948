"""Open blocks: what entering and leaving cost, and which block an exit ends."""

import gc
import sys
import threading
from types import SimpleNamespace

import pytest

from django_dblock.fencing.lock import Blocks, Entry


def entered(blocks, count):
    entries = [Entry(SimpleNamespace(number=number), number) for number in range(count)]
    for entry in entries:
        blocks.add(entry)
    return entries


def calls_of(act):
    """Return how many calls of Python functions and of C functions an act makes."""
    events = []
    gc.disable()  # what it would end is not ours
    sys.setprofile(lambda _, event, __: events.append(event))
    try:
        act()
    finally:
        sys.setprofile(None)
        gc.enable()
    return sum(event.endswith("call") for event in events)


@pytest.mark.parametrize("held", [10, 2_000])
def test_leaving_the_latest_block_costs_the_same_with_many_open(held):
    few, many = Blocks("few"), Blocks("many")
    *_, one = entered(few, 2)
    *_, other = entered(many, held)
    assert calls_of(lambda: few.remove(one.block)) == calls_of(lambda: many.remove(other.block))


def test_latest_entry_of_an_object_is_removed_first():
    blocks = Blocks("nested")
    block = SimpleNamespace()
    for lease in ("outer", "inner"):
        blocks.add(Entry(block, lease))
    assert [entry.lease for entry in blocks.entered_here] == ["inner", "outer"]
    assert [blocks.remove(block), blocks.remove(block)] == ["inner", "outer"]
    assert list(blocks.entered_here) == []


def test_blocks_can_be_left_in_any_order():
    blocks = Blocks("disorder")
    entries = entered(blocks, 4)
    for number in (1, 3, 0):
        assert blocks.remove(entries[number].block) == number
    assert [entry.lease for entry in blocks.entered_here] == [2]
    assert blocks.remove(entries[2].block) == 2
    with pytest.raises(RuntimeError, match="0 blocks"):
        blocks.remove(entries[2].block)


def test_removal_in_another_thread_keeps_the_other_blocks():
    blocks = Blocks("elsewhere")
    first, second = entered(blocks, 2)
    thread = threading.Thread(target=lambda: blocks.remove(first.block))
    thread.start()
    thread.join()
    assert blocks.remove(second.block) == 1
    with pytest.raises(RuntimeError, match="0 blocks"):
        blocks.remove(first.block)
