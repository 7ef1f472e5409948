"""The diff of a conflict: mine, theirs and the original of each field."""

import django
import pytest
from django.db.models import F

from django_dblock import UNKNOWN, StaleObject, conflict_diff
from tests.app import models as app
from tests.app.models import Gadget, Product
from tests.versioning.conftest import overtake

pytestmark = pytest.mark.django_db


def conflict(instance, **options):
    with pytest.raises(StaleObject) as caught:
        instance.save_cas(**options)
    return caught.value


def values(diff):
    return {name: (field.original, field.mine, field.theirs) for name, field in diff.fields.items()}


def test_each_field_has_three_values(product, statements):
    overtake(product, name="theirs", stock=11)
    product.name, product.price = "mine", 5
    error = conflict(product)
    with statements() as sent:
        diff = conflict_diff(error)
    assert len(sent) == 1
    assert values(diff) == {
        "name": ("original", "mine", "theirs"),
        "price": (0, 5, 0),
        "stock": (10, 10, 11),
    }
    assert (diff.version, diff.deleted) == (2, False)
    assert [field.name for field in diff.conflicting] == ["name"]
    facts = {
        name: (field.changed_by_me, field.changed_by_them, field.conflicting)
        for name, field in diff.fields.items()
    }
    assert facts == {
        "name": (True, True, True),
        "price": (True, False, False),
        "stock": (False, True, False),
    }
    assert diff.fields["name"].label == "name"


def test_both_to_the_same_value_is_no_conflict(product):
    overtake(product, name="same")
    product.name = "same"
    assert conflict_diff(conflict(product)).conflicting == []


def test_save_after_diff_compares_the_present_row(product):
    overtake(product)
    error = conflict(product)
    overtake(product, name="even newer")
    diff = conflict_diff(error)
    assert (error.actual, diff.version) == (2, 3)
    product.save_cas(expected=diff.version)


def test_diff_of_a_deleted_row_knows_no_theirs(product):
    Product.objects.all().delete()
    diff = conflict_diff(conflict(product))
    assert diff.deleted
    assert diff.fields["name"].theirs is UNKNOWN


def test_diff_of_an_object_without_a_key_is_deleted(product):
    overtake(product)
    error = conflict(product)
    error.pk = None
    assert conflict_diff(error).deleted


def test_diff_has_only_the_requested_fields(product):
    overtake(product)
    diff = conflict_diff(conflict(product), fields=["stock"])
    assert list(diff.fields) == ["stock"]


def test_original_can_be_passed(product):
    """The instance of a posted form was read when it was posted, not when it was shown."""
    overtake(product, name="theirs", stock=11)
    posted = Product.objects.get(pk=product.pk)
    posted.name = "mine"
    error = conflict(posted, expected=1)
    diff = conflict_diff(error, original={"name": "original", "stock": "10"})
    assert values(diff)["name"] == ("original", "mine", "theirs")
    assert values(diff)["stock"] == (10, 11, 11), "as the row would give it back"
    assert values(diff)["price"][0] is UNKNOWN
    assert not diff.fields["price"].changed_by_me
    assert not diff.fields["price"].changed_by_them
    posted.name, posted.price = "mine", "5"
    diff = conflict_diff(error, original={})
    assert diff.fields["price"].changed_by_me
    assert diff.fields["price"].conflicting, "nobody knows, so a person looks"


def test_save_updates_the_original(product):
    product.name = "first"
    product.save()
    product.name = "second"
    overtake(product, stock=0)
    assert values(conflict_diff(conflict(product)))["name"] == ("first", "second", "first")


def test_created_object_has_an_original():
    product = Product.objects.create(name="first")
    product.name = "mine"
    overtake(product, name="theirs")
    assert values(conflict_diff(conflict(product)))["name"] == ("first", "mine", "theirs")


def test_originals_after_bulk_create_bulk_save_and_refresh():
    [product] = Product.objects.bulk_create([Product(name="first")])
    product.name = "second"
    assert product._version_origin["name"] == "first"
    Product.objects.bulk_save_cas([product], ["name"])
    assert product._version_origin["name"] == "second"
    overtake(product, name="third")
    product.refresh_from_db()
    assert product._version_origin["name"] == "third"


def test_refused_save_keeps_the_original(product):
    overtake(product)
    product.name = "mine"
    conflict(product)
    assert values(conflict_diff(conflict(product)))["name"][0] == "original"


def test_deferred_fields_are_left_out(product, statements):
    partly = Product.objects.only("name", "version").get(pk=product.pk)
    overtake(product)
    error = conflict(partly)
    with statements() as sent:
        diff = conflict_diff(error)
    assert len(sent) == 1
    assert list(diff.fields) == ["name"]


def test_expressions_are_unknown(product):
    overtake(product)
    product.stock = F("stock") + 1
    assert values(conflict_diff(conflict(product)))["stock"] == (10, UNKNOWN, 10)
    product.refresh_from_db()
    product.stock = F("stock") + 1
    product.save()
    if django.VERSION >= (6, 0):  # the save returns the value
        assert product._version_origin["stock"] == product.stock == 11
    else:
        assert "stock" not in product._version_origin


def test_unreadable_value_is_shown_raw(product):
    overtake(product)
    error = conflict(product)
    product.stock = "many"
    assert conflict_diff(error).fields["stock"].mine == "many"


def test_keys_and_versions_are_left_out(product):
    gadget = Gadget.objects.create(name="a", watts=1)
    gadget.watts = 2
    overtake(gadget, watts=3)
    diff = conflict_diff(conflict(gadget))
    assert values(diff)["watts"] == (1, 2, 3)
    assert "product_ptr" not in diff.fields
    assert "id" not in diff.fields
    place = app.Place.objects.create(row="A", number=1)
    overtake(place, guest="theirs")
    assert list(conflict_diff(conflict(place)).fields) == ["guest"]
    line = app.InvoiceLine.objects.create(invoice=app.Invoice.objects.create(), product=product)
    line.product = None
    overtake(line, quantity=2)
    assert values(conflict_diff(conflict(line)))["product"] == (product.pk, None, product.pk)
