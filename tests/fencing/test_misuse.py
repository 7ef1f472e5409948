"""Errors around a lease do not affect other leases, and last no longer than its ttl."""

import sys
import threading

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import NotSupportedError, transaction

from django_dblock import LockLost, fenced_lock, force_release
from django_dblock.fencing.heartbeat import heartbeat
from tests.app.models import Account
from tests.fencing.helpers import NAME, until_expired, until_renewed

pytestmark = pytest.mark.django_db(transaction=True)


def test_exit_in_on_lost_keeps_other_leases_renewed(observer, caplog):
    called = threading.Event()

    def leave(_lease):
        called.set()
        sys.exit(1)

    with fenced_lock("other", ttl=3):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=3, on_lost=leave):
            force_release(NAME)
            assert called.wait(90)
        until_renewed(observer, "other")
        until_renewed(observer, "other")
    assert "failed" in caplog.text


def test_open_transaction_at_exit_lets_the_lease_expire(observer):
    """Not one that is renewed until the process ends."""
    with pytest.raises(ValueError, match="its own"), fenced_lock(NAME, ttl=0.5):
        transaction.set_autocommit(False)
        raise ValueError("its own")
    transaction.rollback()
    transaction.set_autocommit(True)
    assert not heartbeat.of("default")._due
    until_expired(observer)
    with fenced_lock(NAME, ttl=30):
        pass


@pytest.mark.parametrize(
    "metadata", [{"a": float("nan")}, {"a": "\0"}, {"a": "\ud800"}], ids=["nan", "nul", "surrogate"]
)
def test_unstorable_metadata_is_refused_before_sql(metadata, statements):
    with statements() as sent, pytest.raises(ValueError):  # noqa: PT011 - json's own, too
        fenced_lock(NAME, ttl=30, metadata=metadata)
    assert len(sent) == 0


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create", {"name": "a"}),
        ("bulk_create", {"objs": []}),
        ("get_or_create", {"name": "a"}),
        ("update_or_create", {"name": "a"}),
    ],
)
def test_fenced_queryset_refuses_to_create_rows(method, arguments):
    getattr(Account.objects.all(), method)(**arguments)
    with fenced_lock(NAME, ttl=30) as lock:
        with pytest.raises(NotSupportedError, match="would not be fenced"):
            getattr(Account.objects.fenced(lock), method)(**arguments)


def test_run_with_an_empty_lock_name_is_refused():
    with pytest.raises(CommandError, match="unset variable") as caught:
        call_command("dblock", "run", "--lock", "", "--", "true")
    assert caught.value.returncode == 2
