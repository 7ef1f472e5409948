"""django-modeltranslation: each write goes to the column of the present language."""

import pytest
from django.core.checks import run_checks
from django.utils.translation import override

pytest.importorskip("modeltranslation")

from django_dblock import StaleObject
from tests.stacks.bilingual.models import Poster

pytestmark = pytest.mark.django_db(transaction=True)


def columns():
    with override("en"):
        return Poster.objects.rewrite(False).values_list("title_en", "title_de", "version").get()


@pytest.fixture
def poster():
    with override("en"):
        return Poster.objects.create(title_en="hello", title_de="hallo")


def test_no_check_complains():
    assert [each for each in run_checks() if each.id.startswith("dblock.E02")] == []


def test_save_cas(poster):
    with override("de"):
        poster.title = "moin"
        poster.save_cas()
    assert columns() == ("hello", "moin", 2)
    Poster.objects.update(title_de="theirs")
    with pytest.raises(StaleObject):
        poster.save()


def test_bulk_save_cas_writes_the_column_of_the_language(poster):
    with override("de"):
        poster.title = "moin"
        assert Poster.objects.bulk_save_cas([poster], ["title"]) == []
    assert columns() == ("hello", "moin", 2)
    stale = Poster.objects.get()
    Poster.objects.update(title_de="theirs")
    with override("de"):
        assert Poster.objects.bulk_save_cas([stale], ["title"]) == [poster.pk]
    assert columns() == ("hello", "theirs", 3)


def test_bulk_update_bumps(poster):
    with override("de"):
        poster.title = "moin"
        Poster.objects.bulk_update([poster], ["title_de"])
    assert columns() == ("hello", "moin", 2)
