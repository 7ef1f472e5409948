"""A model with a version and a fence: each write is held to both."""

import pytest
from django.db import NotSupportedError

from django_dblock import FencedLock, StaleFence, StaleObject, fenced_lock
from tests.app.models import Reserve, Stock
from tests.fencing.helpers import NAME

beside = pytest.mark.django_db(transaction=True)
elsewhere = pytest.mark.django_db(transaction=True, databases=["default", "other"])

both_orders = pytest.mark.parametrize("model", [Stock, Reserve])


@pytest.fixture
def lock(db):
    with fenced_lock(NAME, ttl=30) as held:
        yield held


def written(model, alias="default"):
    return model.objects.using(alias).values_list("number", "version", "fence_token").get()


@beside
@both_orders
class TestBesideTheLockTable:
    def test_fenced_save_bumps_the_version(self, model, lock):
        stock = model.objects.create()
        stock.number = 5
        stock.save_fenced(lock)
        assert written(model) == (5, 2, lock.token)
        stock.number = 6
        stock.save_fenced(lock)
        stock.save_cas()
        assert written(model) == (6, 4, lock.token)

    def test_fenced_save_of_a_changed_row_is_a_version_conflict(self, model, lock):
        stock = model.objects.create()
        model.objects.update(number=3)
        stock.number = 5
        with pytest.raises(StaleObject):
            stock.save_fenced(lock)
        assert written(model) == (3, 2, 0)
        assert (stock.version, stock.fence_token) == (1, 0)

    def test_lost_lock_writes_nothing(self, model, lock):
        stock = model.objects.create()
        FencedLock.objects.update(token=lock.token + 1)
        with pytest.raises(StaleFence):
            stock.save_fenced(lock)
        assert written(model) == (0, 1, 0)
        assert stock.version == 1
        FencedLock.objects.update(token=lock.token)
        lock.trust._reason = None

    def test_bulk_save_cas_of_a_fenced_queryset_is_refused(self, model, lock):
        """It compares versions only, and would overwrite what a newer holder has written."""
        stock = model.objects.create()
        model.objects.update(fence_token=lock.token + 1)
        stock.refresh_from_db()
        with pytest.raises(NotSupportedError, match="would not be fenced"):
            model.objects.fenced(lock).bulk_save_cas([stock], ["number"])
        assert model.objects.bulk_save_cas([stock], ["number"]) == []

    def test_fenced_update_bumps_and_stamps(self, model, lock):
        model.objects.create()
        model.objects.fenced(lock).update(number=5)
        assert written(model) == (5, 2, lock.token)


@beside
def test_newer_fence_is_reported_as_stale_fence(lock):
    """The column alone refuses it: the version is as it was read."""
    stock = Stock.objects.create(fence_token=lock.token + 1)
    with pytest.raises(StaleFence, match="a newer holder"):
        stock.save_fenced(lock)
    assert written(Stock) == (0, 1, lock.token + 1)


@elsewhere
@both_orders
def test_claim_keeps_the_version(model, lock):
    """What was claimed and read can be saved: nobody has changed what the version counts."""
    model.objects.using("other").create()
    stock = model.objects.using("other").fenced(lock).get()
    assert written(model, "other") == (0, 1, lock.token)
    stock.number = 5
    stock.save_fenced(lock, using="other")
    assert written(model, "other") == (5, 2, lock.token)
