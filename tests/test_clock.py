"""The package's clock runs while a test freezes Python's clocks."""

import re
import time
from pathlib import Path

import pytest

import django_dblock
from django_dblock.core import clock
from django_dblock.testing import assert_no_locks


def test_clock_is_monotonic_seconds():
    before = clock.monotonic()
    time.sleep(0.01)
    assert 0.01 <= clock.monotonic() - before < 60


@pytest.fixture
def frozen_clocks(monkeypatch):
    """All that freezegun and time-machine replace, as they do it: the names in ``time``."""
    for name in ("time", "monotonic", "perf_counter"):
        stopped = getattr(time, name)()
        monkeypatch.setattr(time, name, lambda stopped=stopped: stopped)


def test_clock_goes_on_under_a_frozen_clock(frozen_clocks):
    before, frozen = clock.monotonic(), time.monotonic()
    time.sleep(0.01)
    assert time.monotonic() == frozen
    assert clock.monotonic() - before >= 0.01


def test_no_module_waits_by_another_clock():
    package = Path(django_dblock.__file__).parent
    others = re.compile(r"\btime\.(monotonic|perf_counter)|from time import")
    used = {path.name for path in package.rglob("*.py") if others.search(path.read_text())}
    assert used == {"clock.py"}


@pytest.mark.timeout(60)
@pytest.mark.django_db(transaction=True)
def test_search_for_locks_ends_under_a_frozen_clock(frozen_clocks, hold_lock):
    with hold_lock("inventory", "sku-1"):
        with pytest.raises(AssertionError, match="lock inventory:sku-1, held by"):
            assert_no_locks(within=0.05)
