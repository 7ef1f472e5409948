"""Settings: read at access, refused where they make no sense."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_dblock.conf import MAX_TIMEOUT, conf


def test_defaults():
    assert conf.advisory_timeout == 10
    assert conf.database is None
    assert conf.namespace == ""
    assert conf.labels == "full"
    assert conf.allow_snapshot_isolation is False
    assert conf.max_keys == 1000
    assert conf.locked_status == 423


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("advisory_timeout", [0, 0.5, None, MAX_TIMEOUT], [-1, "1", True, float("nan"), 10**10]),
        ("database", [None, "other"], ["nowhere", 1, ["default"], {}]),
        ("namespace", ["", "shop"], [None, b"shop"]),
        ("labels", ["full", "first", "off"], [None, True, "all"]),
        ("allow_snapshot_isolation", [True, False], [None, 1, "yes"]),
        ("max_keys", [1, 10**6], [0, True, 1.5, None]),
        ("locked_status", [409, 423, 503], [200, 500, "423", 423.0, None]),
    ],
)
def test_values(name, good, bad, settings):
    for value in good:
        setattr(settings, f"DBLOCK_{name.upper()}", value)
        assert getattr(conf, name) == value
    for value in bad:
        setattr(settings, f"DBLOCK_{name.upper()}", value)
        with pytest.raises(ImproperlyConfigured, match=f"DBLOCK_{name.upper()} must be .*, not "):
            getattr(conf, name)
