"""The version of an instance belongs to the row with its primary key."""

import copy
import pickle

import pytest
from django.db import transaction

from django_dblock import MissingVersion, StaleObject, VersionedQuerySet
from django_dblock.versioning import loaded_state, save
from tests.app import models as app
from tests.app.models import Code, Gadget, Invoice, Product, Special
from tests.versioning.conftest import version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def created():
    return Product.objects.create(name="made")


def created_in_bulk():
    return Product.objects.bulk_create([Product(name="made")])[0]


def saved_by_hand():
    product = Product(name="made")
    product.save()
    return product


def copied_by_pk_none():
    product = Product.objects.get(pk=created().pk)
    product.pk = None
    product.save()
    return product


def unpickled():
    return pickle.loads(pickle.dumps(created()))


def copied():
    return copy.copy(created())


def got_or_created():
    return Product.objects.get_or_create(name="made")[0]


def read_in_part():
    return Product.objects.only("name", "version").get(pk=created().pk)


def refreshed_in_part():
    product = Product(pk=created().pk)
    product._state.adding = False
    product.refresh_from_db(fields=["name", "version"])
    return product


def expected():
    product = Product(pk=created().pk)
    product.expect_version(1)
    product._state.adding = False
    return product


@pytest.mark.parametrize(
    "make",
    [
        created,
        created_in_bulk,
        saved_by_hand,
        copied_by_pk_none,
        unpickled,
        copied,
        got_or_created,
        read_in_part,
        refreshed_in_part,
        expected,
    ],
)
def test_changed_key_of_a_made_or_read_row_is_refused(make):
    other = Product.objects.create(name="other")
    made = make()
    made.pk = other.pk
    made.name = "made"
    for write in (made.save, made.save_cas, made.delete_cas, made.touch_version):
        with pytest.raises(MissingVersion):
            write()
    assert Product.objects.get(pk=other.pk).name == "other"
    assert version_of(other) == 1


@pytest.mark.parametrize("model", [Gadget, Special, app.Coded, Invoice, Code])
def test_every_kind_of_key_is_known_after_insert(model):
    other, made = (model.objects.create(**values) for values in keys(model))
    made.pk = other.pk
    for write in (made.save, made.save_cas, made.delete_cas, made.touch_version):
        with pytest.raises(MissingVersion):
            write()
    assert model.objects.count() == 2


def keys(model):
    return [{"code": each} if issubclass(model, Code) else {} for each in ("x", "y")]


def test_created_object_can_be_saved():
    for model in (Product, Gadget, Special, app.Coded, Invoice, Code, app.Article):
        made = model.objects.create(**keys(model)[model is Code])
        made.save()
        assert getattr(made, made._version_field.attname) == version_of(made) == 2


def test_database_defaults_are_the_original_after_insert():
    article = app.Article.objects.create(title="A")
    assert article._version_origin["state"] == "draft"
    assert article._version_origin["slug"] == "a"


@pytest.mark.parametrize("read", [True, False])
def test_parent_link_to_another_row_is_refused(read):
    other = Gadget.objects.create(name="other")
    gadget = Gadget.objects.create(name="made")
    if read:
        gadget = Gadget.objects.get(pk=gadget.pk)
    gadget.product_ptr_id = other.pk
    for write in (gadget.save, gadget.save_cas, gadget.delete_cas):
        with pytest.raises(MissingVersion):
            write()
    with pytest.raises(MissingVersion):
        gadget.delete_cas(expected=1)
    assert Gadget.objects.count() == Product.objects.count() == 2


def test_missing_child_row_is_named():
    product = Product.objects.create(name="parent")
    child = Gadget(product_ptr=product, name="child", watts=1)
    with pytest.raises(MissingVersion):
        child.save_cas()
    with pytest.raises(StaleObject, match="none in app_gadget") as caught:
        child.save_cas(expected=1)
    assert caught.value.missing_in == "app_gadget"
    assert Product.objects.get().name == "parent"


def test_child_row_can_be_added_under_the_parents_version():
    product = Product.objects.create(name="parent")
    stale = Product.objects.get()

    def add(parent):
        with transaction.atomic():
            parent.touch_version()
            Gadget(product_ptr=parent, watts=1).save_base(raw=True)

    add(product)
    gadget = Gadget.objects.get()
    assert (gadget.name, gadget.watts, gadget.version) == ("parent", 1, 2)
    Gadget.objects.all().delete(), Product.objects.all().delete()
    with pytest.raises(StaleObject):
        add(stale)


def test_save_to_another_alias_and_back_is_explained(product):
    twin = Product.objects.using("other").create(pk=product.pk, name="there")
    product.save(using="other")
    assert (product.version, version_of(twin, "other")) == (2, 2)
    with pytest.raises(StaleObject, match="database 'other'") as caught:
        product.save(using="default")
    assert not caught.value.rolled_back
    assert (caught.value.read_using, caught.value.expected, caught.value.actual) == ("other", 2, 1)


def test_version_none_inserts_version_1():
    product = Product(name="made", version=None)
    product.save()
    assert product.version == version_of(product) == 1
    [product] = Product.objects.bulk_create([Product(version=None)])
    assert product.version == version_of(product) == 1
    product.version = None
    with pytest.raises(MissingVersion):
        product.save()


def test_unloaded_parent_link_is_accepted():
    gadget = Gadget.objects.create(name="a")
    del gadget.__dict__["product_ptr_id"]
    assert loaded_state.links_agree(gadget)


def test_child_row_can_be_added_with_save_base(product):
    child = Gadget(product_ptr=product, watts=1)
    child._state.adding = False
    child.save_base(raw=True)
    assert Gadget.objects.get().watts == 1


def test_overridden_filter_disables_the_key_range():
    class Filtering(VersionedQuerySet):
        def filter(self, *args, **kwargs):
            return super().filter(*args, **kwargs)

    assert save._key_range(Product, VersionedQuerySet, int) is not None
    assert save._key_range(Product, Filtering, int) is None
    assert save._key_range(Product, VersionedQuerySet, str) is None


def test_partial_read_does_not_adopt_the_key_of_another_row(product):
    """What is read of the other row is not its version, so no version of it is known."""
    other = Product.objects.create(name="other", stock=7)
    partly = Product.objects.only("name", "version").get(pk=product.pk)
    product.pk = partly.pk = other.pk
    product.refresh_from_db(fields=["stock"])
    assert product.stock == partly.stock == 7
    for made in (product, partly):
        for write in (made.save, made.save_cas, made.delete_cas, made.touch_version):
            with pytest.raises(MissingVersion):
                write()
    product.refresh_from_db()
    product.save()
    assert Product.objects.values_list("name", "version").get(pk=other.pk) == ("other", 2)


# The object of a parent link: Django makes it of the child's values, without reading a row.


def test_parent_object_with_a_changed_key_is_refused():
    gadget, other = (Gadget.objects.create(name=name) for name in ("made", "other"))
    parent = Gadget.objects.get(pk=gadget.pk).product_ptr
    parent.pk = other.pk
    for write in (parent.save, parent.save_cas, parent.delete_cas, parent.touch_version):
        with pytest.raises(MissingVersion):
            write()
    assert Product.objects.get(pk=other.pk).name == "other"


def test_parent_object_of_a_version_read_alone_is_refused():
    gadget = Gadget.objects.defer("version").get(pk=Gadget.objects.create(name="read").pk)
    Product.objects.filter(pk=gadget.pk).update(name="theirs")
    assert gadget.version == 2
    with pytest.raises(MissingVersion):
        gadget.product_ptr.save()
    assert Product.objects.get().name == "theirs"


def test_parent_object_is_saved_with_the_childs_version():
    gadget = Gadget.objects.get(pk=Gadget.objects.create(name="read").pk)
    gadget.product_ptr.save()
    assert version_of(gadget) == 2
    with pytest.raises(StaleObject):
        gadget.save()
    read = Gadget.objects.only("watts").get().product_ptr
    read.save()
    assert version_of(gadget) == 3
