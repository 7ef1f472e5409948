"""Revisions of versioned models: a stand-in for Wagtail, which tests/stacks has itself."""

import pytest
from django.test.utils import isolate_apps

from django_dblock import MissingVersion, StaleObject, VersionedModel
from django_dblock.contrib.wagtail import VersionedRevisionMixin
from tests.app.models import Product

pytestmark = pytest.mark.django_db


class Revisions:
    """What Wagtail's RevisionMixin does, in short."""

    def serializable_data(self):
        return {
            "pk": self.pk,
            **{each.name: getattr(self, each.name) for each in self._meta.fields},
        }

    def with_content_json(self, content):
        made = type(self)(**{name: value for name, value in content.items() if name != "pk"})
        made.pk = self.pk
        return made


@pytest.fixture
def advert():
    with isolate_apps("tests.app"):

        class Advert(VersionedRevisionMixin, Revisions, VersionedModel):
            name = Product._meta.get_field("name").clone()
            price = Product._meta.get_field("price").clone()
            stock = Product._meta.get_field("stock").clone()

            class Meta:
                app_label = "app"
                db_table = Product._meta.db_table

        made = Advert.objects.create(name="old")
        yield Advert.objects.get(pk=made.pk)


def test_revision_holds_no_version(advert):
    assert "version" not in advert.serializable_data()


@pytest.mark.parametrize("more", [{}, {"version": 1}])
def test_older_revision_can_replace_the_row(advert, more):
    content = {**advert.serializable_data(), **more}
    advert.name = "new"
    advert.save()
    made = advert.with_content_json(content)
    made.save()
    assert Product.objects.values_list("name", "version").get() == ("old", 3)
    with pytest.raises(StaleObject):
        advert.save()


def test_publishing_over_a_changed_row_conflicts(advert):
    made = advert.with_content_json(advert.serializable_data())
    Product.objects.update(name="theirs")
    with pytest.raises(StaleObject):
        made.save()


def test_deferred_version_stays_deferred(advert):
    deferred = type(advert).objects.defer("version").get()
    made = deferred.with_content_json(advert.serializable_data())
    with pytest.raises(MissingVersion):
        made.save()
