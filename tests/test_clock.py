"""The package's clock goes on when the clocks of a test stand still."""

import time

import pytest

from django_dblock.core import clock


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
