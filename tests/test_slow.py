"""Slow waits and long holds are logged; quick ones are not, and cost nothing."""

import logging
import re
from datetime import timedelta

import pytest
from django.test import override_settings

from django_dblock import LockTimeout, advisory_lock, advisory_semaphore, fenced_lock, signals
from django_dblock.checks.settings import check_settings
from tests.contrib import events
from tests.helpers.locks import deadlock

pytestmark = pytest.mark.django_db(transaction=True)

LONG = 3600
NEVER_MIND = timedelta(microseconds=1)


def test_by_default_no_receiver_is_connected():
    with advisory_lock("a"):
        pass
    for signal in (signals.lock_acquired, signals.lock_released, signals.lock_timeout):
        assert not signal.receivers


@override_settings(DBLOCK_SLOW_WAIT=NEVER_MIND)
def test_slow_wait_is_logged(caplog):
    events.waited()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("django_dblock.advisory", "WARNING")
    assert re.match(r"Slow lock: waited \d+\.", record.getMessage())
    assert record.getMessage().endswith(" s for inventory:sku-2 on 'default'")
    assert (record.kind, record.lock, record.using, record.shared) == (
        "advisory", "inventory:sku-2", "default", False,
    )  # fmt: skip
    assert record.waited > 0


@override_settings(DBLOCK_SLOW_WAIT=NEVER_MIND)
def test_slow_timed_out_wait_is_logged(caplog, rival, observer):
    events.timed_out()
    deadlock(rival, observer)
    in_vain, met = (record.getMessage() for record in caplog.records)
    assert re.match(r"Slow lock: gave up after \d+\.", in_vain)
    assert met.startswith("Slow lock: ended in a deadlock after ")


@override_settings(DBLOCK_SLOW_HOLD=NEVER_MIND)
def test_long_hold_is_logged(caplog):
    with advisory_lock("a"):
        pass
    with fenced_lock("nightly-sync", ttl=30), pytest.raises(LockTimeout):
        fenced_lock("nightly-sync", ttl=30).__enter__()
    advisory, fenced = caplog.records
    assert re.match(r"Slow lock: held for \d+\.", advisory.getMessage())
    assert (advisory.name, advisory.lock) == ("django_dblock.advisory", "a")
    assert (fenced.name, fenced.lock) == ("django_dblock.fencing", "nightly-sync")
    assert fenced.held > 0


@override_settings(DBLOCK_SLOW_HOLD=NEVER_MIND)
def test_long_hold_of_an_advisory_permit_is_logged_as_advisory(caplog):
    with advisory_semaphore("pdf", permits=2):
        pass
    [record] = caplog.records
    assert (record.name, record.kind) == ("django_dblock.advisory", "advisory_semaphore")


@override_settings(DBLOCK_SLOW_WAIT=LONG, DBLOCK_SLOW_HOLD=LONG)
def test_quick_waits_and_holds_are_not_logged(caplog):
    events.waited()
    assert caplog.records == []


@override_settings(DBLOCK_SLOW_WAIT="soon")
def test_wrong_limit_is_left_to_the_checks(caplog):
    events.waited()
    assert caplog.records == []
    [error] = check_settings()
    assert error.msg.startswith("DBLOCK_SLOW_WAIT must be a timedelta or a number")


def test_lost_lease_is_logged_with_fields(caplog):
    with caplog.at_level(logging.WARNING, logger="django_dblock"):
        events.leased()
    ended, taken, expired = caplog.records
    assert (ended.name, ended.lock) == ("django_dblock.audit", "nightly-sync")
    for record in (taken, expired):
        assert record.name == "django_dblock.fencing"
        assert (record.kind, record.lock, record.using) == ("fenced", "nightly-sync", "default")
        assert record.token > 1
    assert "operator" in taken.reason
    assert expired.reason == "no renewal was confirmed in time"
