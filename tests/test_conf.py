"""Settings: read at access, and refused if they are wrong."""

from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_dblock.conf import MAX_TIMEOUT, conf


def test_settings_have_their_defaults():
    assert conf.advisory_timeout == 10
    assert conf.database is None
    assert conf.namespace == ""
    assert conf.labels == "full"
    assert conf.allow_snapshot_isolation is False
    assert conf.prepare is True
    assert conf.max_keys == 1000
    assert conf.locked_status == 423
    assert conf.slow_wait is None
    assert conf.slow_hold is None
    assert conf.idempotency_ttl == 86_400
    assert conf.idempotency_lease == 60
    assert conf.idempotency_max_body == 1024 * 1024
    assert conf.idempotency_max_keys is None
    assert conf.idempotency_headers == ()
    assert conf.idempotency_cipher is None


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("advisory_timeout", [0, 0.5, None, MAX_TIMEOUT], [-1, "1", True, float("nan"), 10**10]),
        ("database", [None, "other"], ["nowhere", 1, ["default"], {}]),
        ("namespace", ["", "shop", "acme.example.com"], [None, b"shop"]),
        ("labels", ["full", "first", "off"], [None, True, "all"]),
        ("allow_snapshot_isolation", [True, False], [None, 1, "yes"]),
        ("prepare", [True, False], [None, 1, "yes"]),
        ("max_keys", [1, 10**6], [0, True, 1.5, None]),
        ("locked_status", [409, 423, 503], [200, 500, "423", 423.0, None]),
        ("slow_wait", [None, 0.5, 60], [0, -1, True, "1", float("nan"), timedelta(0)]),
        ("slow_hold", [None, 0.5, 60], [0, -1, True, "1", float("inf"), timedelta(-1)]),
        ("idempotency_ttl", [0.5, 60], [0, -1, True, "1", None, float("nan"), timedelta(0), 1e12]),
        ("idempotency_lease", [0.5, 60], [0, -1, True, "1", None, float("inf"), timedelta(-1)]),
        ("idempotency_max_body", [0, 10**8], [-1, 1.5, True, None, 10**9]),
        ("idempotency_max_keys", [None, 1, 10**6], [0, -1, 1.5, True, "1"]),
        ("idempotency_headers", [(), ("X-A",)], ["X-A", None, [1], ["set-cookie"], ("DATE",)]),
    ],
)
def test_setting_takes_right_values_and_refuses_wrong_ones(name, good, bad, settings):
    for value in good:
        setattr(settings, f"DBLOCK_{name.upper()}", value)
        assert getattr(conf, name) == value
    for value in bad:
        setattr(settings, f"DBLOCK_{name.upper()}", value)
        with pytest.raises(ImproperlyConfigured, match=f"DBLOCK_{name.upper()} must be .*, not "):
            getattr(conf, name)


def test_duration_can_be_a_timedelta(settings):
    settings.DBLOCK_IDEMPOTENCY_TTL = timedelta(days=7)
    settings.DBLOCK_IDEMPOTENCY_LEASE = timedelta(milliseconds=500)
    settings.DBLOCK_SLOW_WAIT = timedelta(milliseconds=250)
    assert (conf.idempotency_ttl, conf.idempotency_lease) == (604_800, 0.5)
    assert conf.slow_wait == 0.25


class Cipher:
    """It has what a cipher needs."""

    def encrypt(self, data):
        return data

    def decrypt(self, data):
        return data


CIPHER = Cipher()


@pytest.mark.parametrize("value", [CIPHER, f"{__name__}.CIPHER"], ids=["object", "path"])
def test_cipher_can_be_an_object_or_a_path(settings, value):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = value
    assert conf.idempotency_cipher is CIPHER


@pytest.mark.parametrize("value", [b"key", 1, "nowhere.at_all", "datetime.timedelta"])
def test_cipher_without_methods_is_refused(settings, value):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = value
    with pytest.raises(ImproperlyConfigured, match="DBLOCK_IDEMPOTENCY_CIPHER"):
        _ = conf.idempotency_cipher
