"""django-import-export: with use_bulk as without, an import bumps what it changes."""

import pytest

pytest.importorskip("import_export")

import tablib
from import_export import resources

from django_dblock import StaleObject
from tests.stacks.imports.models import Price

pytestmark = pytest.mark.django_db(transaction=True)


class PriceResource(resources.ModelResource):
    class Meta:
        model = Price
        import_id_fields = ("code",)
        fields = ("code", "cents")


class BulkResource(PriceResource):
    class Meta(PriceResource.Meta):
        use_bulk = True


class EverythingInBulk(resources.ModelResource):
    """All fields, and so the version as well."""

    class Meta:
        model = Price
        use_bulk = True


@pytest.mark.parametrize("resource", [PriceResource, BulkResource])
def test_import_bumps(resource):
    old = Price.objects.create(code="a", cents=1)
    rows = tablib.Dataset(["a", 5], ["b", 7], headers=["code", "cents"])
    result = resource().import_data(rows, raise_errors=True)
    assert (result.totals["update"], result.totals["new"]) == (1, 1)
    assert list(Price.objects.order_by("code").values_list("code", "cents", "version")) == [
        ("a", 5, 2), ("b", 7, 1),
    ]  # fmt: skip
    with pytest.raises(StaleObject):
        old.save()


def test_what_was_exported_whole_comes_back_in_bulk():
    Price.objects.create(code="a", cents=1)
    exported = EverythingInBulk().export()
    assert "version" in exported.headers
    Price.objects.update(cents=2)
    EverythingInBulk().import_data(exported, raise_errors=True)
    assert Price.objects.values_list("cents", "version").get() == (1, 3)


def test_without_bulk_the_exported_version_is_compared():
    class Everything(resources.ModelResource):
        class Meta:
            model = Price

    Price.objects.create(code="a", cents=1)
    exported = Everything().export()
    Price.objects.update(cents=2)
    result = Everything().import_data(exported)
    assert result.has_errors() or result.has_validation_errors()
    assert Price.objects.get().cents == 2
