"""Options: refused when the view is decorated."""

from datetime import timedelta

import pytest

from django_dblock import idempotent
from django_dblock.idempotency.options import Options


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "eventual"}, "'atomic' or 'lease'"),
        ({"mode": "lease", "on_abandoned": "ignore"}, "'takeover' or 'refuse'"),
        ({"ttl": 0}, "ttl=0 is not a timedelta"),
        ({"ttl": "1 day"}, "ttl='1 day'"),
        ({"ttl": timedelta(0)}, "above 0"),
        ({"ttl": True}, "ttl=True"),
        ({"mode": "lease", "lease": -1}, "lease=-1"),
        ({"wait": -1}, "wait=-1"),
        ({"wait": None}, "wait=None"),
        ({"lease": 5}, "for mode='lease'"),
        ({"on_abandoned": "refuse"}, "for mode='lease'"),
    ],
)
def test_wrong_options_are_refused_at_decoration(options, why):
    with pytest.raises(ValueError, match=why):
        idempotent(**options)


def test_durations_come_from_the_settings(settings):
    assert (Options().ttl_seconds, Options().lease_seconds) == (86_400, 60)
    settings.DBLOCK_IDEMPOTENCY_TTL = timedelta(days=2)
    settings.DBLOCK_IDEMPOTENCY_LEASE = 5
    assert (Options().ttl_seconds, Options().lease_seconds) == (172_800, 5)


def test_durations_can_be_set_for_a_view():
    options = Options("lease", ttl=timedelta(minutes=1), lease=0.5)
    assert (options.ttl_seconds, options.lease_seconds) == (60, 0.5)
