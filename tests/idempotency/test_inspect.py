"""Unfinished requests, as programs see them."""

import pickle
from dataclasses import FrozenInstanceError

import pytest
from django.utils import timezone

from django_dblock import UnsupportedDatabase, run_once
from django_dblock.inspect import UnfinishedRequest, unfinished_requests
from tests.idempotency.rows import HOUR, abandoned, make, over, unfinished

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_only_unfinished_requests_are_returned():
    """Those that nobody works on come first, the longest forgotten in front."""
    make("done-key")
    make("over-key", expires_at=over())
    unfinished("live-key")
    abandoned("lost-key", locked_until=timezone.now() - 2 * HOUR)
    abandoned("lost-later-key")
    unfinished("free-key", locked_until=None)
    assert [(each.key, each.state) for each in unfinished_requests()] == [
        ("free…", "free"),
        ("lost…", "abandoned"),
        ("lost-l…", "abandoned"),
        ("live…", "leased"),
    ]


def test_fields_of_an_abandoned_request(statements):
    row = abandoned(expires_at=None, steps={"mail": {"result": "secret"}, "charge": {}})
    with statements() as sent:
        [found] = unfinished_requests()
    assert len(sent) == 1
    assert (found.id, found.state, found.scope) == (row.pk, "abandoned", "user:7")
    assert (found.method, found.path) == ("POST", "/pay/")
    assert (found.owner, found.token) == ("web-2:4711:MainThread", 3)
    assert found.steps == ("charge", "mail")
    assert 3600 <= found.age < 3700
    assert -3700 < found.remaining <= -3600
    assert found.expires_in is None
    assert found.name == "user:7:3f1c0a…"


def test_keys_are_masked_and_results_absent():
    abandoned("3f1c0a52-key", steps={"charge": {"result": "secret"}})
    abandoned("abc")
    shown = repr(unfinished_requests())
    assert "3f1c0a5" not in shown
    assert "abc" not in shown
    assert "secret" not in shown


def test_times_of_a_running_request():
    unfinished()
    [found] = unfinished_requests()
    assert 3500 < found.remaining <= 3600
    assert 24 * 3500 < found.expires_in <= 24 * 3600


def test_running_request_is_leased():
    """The protocol's own row."""
    seen = run_once("a", mode="lease", work=_seen)
    assert seen == ["leased", "once", ["charge"]]
    assert unfinished_requests() == []


def _seen(handle):
    handle.run_step("charge", lambda: 1)
    [found] = unfinished_requests()
    return [found.state, found.scope, found.steps]


def test_pk_selects_one_request():
    first, _ = abandoned("a-key"), abandoned("b-key")
    assert [each.id for each in unfinished_requests(pk=first.pk)] == [first.pk]


def test_using_reads_another_alias():
    abandoned()
    assert unfinished_requests("other") == []
    with pytest.raises(UnsupportedDatabase):
        unfinished_requests("sqlite")


def test_results_are_plain_values():
    abandoned()
    [found] = unfinished_requests()
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(FrozenInstanceError):
        found.state = "free"
    assert isinstance(found, UnfinishedRequest)
