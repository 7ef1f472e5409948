"""django-pghistory and django-pgtrigger: events by triggers, and statements that they rewrite."""

import pytest
from django.core.checks import run_checks
from django.db import transaction

pghistory = pytest.importorskip("pghistory")
pgtrigger = pytest.importorskip("pgtrigger")

from django_dblock import StaleObject  # noqa: E402
from tests.stacks.events.models import Parcel, Sealed  # noqa: E402

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_check_complains():
    assert [each for each in run_checks() if each.id.startswith("dblock.E02")] == []


def test_each_write_has_its_event_with_the_version():
    with pghistory.context(user=1):
        parcel = Parcel.objects.create(place="a")
        parcel.place = "b"
        parcel.save_cas()
        Parcel.objects.filter(pk=parcel.pk).update(place="c")
        stale = Parcel.objects.bulk_save_cas([Parcel.objects.get()], ["place"])
    assert stale == []
    events = parcel.events.order_by("pgh_id")
    assert list(events.values_list("place", "version")) == [
        ("a", 1), ("b", 2), ("c", 3), ("c", 4),
    ]  # fmt: skip
    assert {each.pgh_context.metadata["user"] for each in events} == {1}


def test_old_state_is_brought_back_against_the_present_version():
    parcel = Parcel.objects.create(place="a")
    parcel.place = "b"
    parcel.save()
    event = parcel.events.order_by("pgh_id").first()
    present = Parcel.objects.get()
    present.place = event.place
    present.save_cas()
    assert Parcel.objects.values_list("place", "version").get() == ("a", 3)
    with pytest.raises(StaleObject):
        parcel.save()


def test_with_triggers_ignored_the_comparison_stays():
    with pgtrigger.ignore("events.Parcel:update_update"), transaction.atomic():
        parcel = Parcel.objects.create(place="a")
        parcel.save_cas()
        Parcel.objects.update(place="theirs")
        with pytest.raises(StaleObject):
            parcel.save_cas()
    assert parcel.events.count() == 1


def test_trigger_that_forbids_the_write_is_named():
    sealed = Sealed.objects.create(text="a")
    with pytest.raises(StaleObject, match="trigger"):
        sealed.save_cas()
