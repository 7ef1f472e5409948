"""Updates of the open transaction itself are no conflict."""

import copy
import datetime as dt
import pickle

import pytest
from django.db import transaction
from django.db.models import F, IntegerField
from django.db.models.signals import post_save, pre_save
from django.test import TestCase

from django_dblock import StaleObject, VersionedQuerySet
from django_dblock.versioning import own_writes
from tests.app import models as app
from tests.app.models import Gadget, Invoice, InvoiceLine, Place, Product, Shelf, Tag
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class Undo(Exception):
    pass


def update(instance, **changes):
    model = type(instance)
    assert model.objects.filter(pk=instance.pk).update(**changes) == 1


@pytest.fixture
def receiver():
    """Connect a receiver to the saves of Product for one test."""
    connected = []

    def connect(signal, function):
        signal.connect(function, sender=Product)
        connected.append((signal, function))

    yield connect
    for signal, function in connected:
        signal.disconnect(function, sender=Product)


def test_save_after_related_add_is_no_conflict(statements):
    invoice, line = (
        Invoice.objects.create(),
        InvoiceLine.objects.create(invoice=Invoice.objects.create()),
    )
    line.quantity = 5
    with transaction.atomic():
        invoice.lines.add(line)
        with statements() as sent:
            line.save()
        assert len(sent) == 3, "refused, looked at, written"
        line.save()
    row = InvoiceLine.objects.get()
    assert (row.invoice_id, row.quantity, row.version) == (invoice.pk, 5, 4)
    assert line.version == 4


@pytest.mark.parametrize("lookup", ["pk", "pk__in"])
def test_save_after_update_by_composite_pk_is_no_conflict(lookup):
    place = Place.objects.create(row="A", number=1)
    Place.objects.create(row="A", number=2)
    place.guest = "Ann"
    key = ("A", "1")  # the row's number is an int
    with transaction.atomic():
        rows = Place.objects.filter(**{lookup: key if lookup == "pk" else [key]})
        assert rows.update(guest="Ann") == 1
        place.save()
    assert Place.objects.get(pk=place.pk).version == place.version == 3
    other = Place.objects.get(pk=place.pk)
    with transaction.atomic():
        overtake(place, guest="Eve")
        other.guest = "Bob"
        with pytest.raises(StaleObject):
            other.save()


def test_save_after_related_remove_keeps_the_removal(product):
    line = InvoiceLine.objects.create(invoice=Invoice.objects.create(), product=product)
    line.quantity = 5
    with transaction.atomic():
        product.lines.remove(line)
        line.save()
    row = InvoiceLine.objects.get()
    assert (row.product_id, row.quantity) == (None, 5)
    assert line.product_id is None


def test_adopted_foreign_key_drops_the_cached_object(product):
    line = InvoiceLine.objects.create(invoice=Invoice.objects.create(), product=product)
    with pytest.raises(Undo), transaction.atomic():
        product.lines.remove(line)
        line.save()
        assert line.product is None
        line.save()  # Django takes the key of a related object that is kept, where there is none
        assert InvoiceLine.objects.get().product_id is None
        raise Undo
    line.save()
    assert line.product == InvoiceLine.objects.get().product == product


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_save_after_an_update_in_a_signal_is_no_conflict(product, receiver, signal):
    def restock(instance, **_):
        update(instance, stock=F("stock") - 1)

    receiver(signal, restock)
    with transaction.atomic():
        for name in ("first", "second"):
            product.name = name
            product.save()
    row = Product.objects.get()
    assert (row.name, row.stock) == ("second", 8)
    assert product.version + (signal is post_save) == row.version


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.save(),
        lambda p: p.save_cas(),
        lambda p: p.save(update_fields=["price"]),
        lambda p: p.touch_version(),
    ],
)
def test_value_of_an_own_update_is_adopted(product, write):
    with transaction.atomic():
        update(product, name="ours")
        write(product)
        assert product.name == "ours"
        product.save()
    row = Product.objects.get()
    assert (row.name, row.version) == ("ours", product.version)


def test_adopted_value_is_reverted_by_a_rollback(product):
    with pytest.raises(Undo), transaction.atomic():
        update(product, name="ours")
        product.save()
        product.save()
        raise Undo
    product.stock = 1
    product.save()
    assert Product.objects.get().name == product.name == "original"


@pytest.mark.parametrize("write", [lambda p: p.save(), lambda p: p.touch_version()])
def test_own_change_of_the_same_field_conflicts(product, write):
    product.name = "mine"
    with transaction.atomic():
        update(product, name="ours")
        with pytest.raises(StaleObject):
            write(product)
        assert (product.name, product.version) == ("mine", 1)
        Product.objects.create(name="later")
    assert Product.objects.get(pk=product.pk).name == "ours"


def test_own_change_to_the_same_value_is_no_conflict(product):
    product.name = "ours"
    with transaction.atomic():
        update(product, name="ours")
        product.save()
    assert product.version == version_of(product) == 3


def test_date_of_each_save_is_no_change_of_its_own():
    """Who writes past save() sets what auto_now would; the next save sets it again."""
    row = app.Typed.objects.get(pk=app.Typed.objects.create().pk)
    with transaction.atomic():
        update(row, small=1, seen=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        row.short = "me"
        row.save()
    found = app.Typed.objects.get()
    assert (found.small, found.short, found.version) == (1, "me", 3)
    assert found.seen == row.seen > dt.datetime(2021, 1, 1, tzinfo=dt.UTC)


def test_value_of_another_packages_pre_save_is_no_change_of_its_own(product, monkeypatch):
    """A field that can't be edited, and that each save sets: a modification counter, a slug."""

    class Stamped(IntegerField):
        def pre_save(self, model_instance, add):
            model_instance.stock = 7
            return 7

    stock = Product._meta.get_field("stock")
    monkeypatch.setattr(stock, "__class__", Stamped)
    with transaction.atomic():
        update(product, stock=5)
        with pytest.raises(StaleObject):
            product.save()
    monkeypatch.setattr(stock, "editable", False)
    product.refresh_from_db()
    with transaction.atomic():
        update(product, name="ours", stock=5)
        product.save()
    assert Product.objects.values_list("name", "stock").get() == ("ours", 7)


def test_expression_uses_the_present_row(product):
    product.stock = F("stock") + 1
    with transaction.atomic():
        update(product, stock=F("stock") + 1)
        product.save()
    assert Product.objects.get().stock == 12


def test_deferred_field_is_left_alone(product):
    partly = Product.objects.only("stock", "version").get()
    partly.stock = 1
    with transaction.atomic():
        update(product, name="ours")
        partly.save()
    assert Product.objects.values_list("name", "stock").get() == ("ours", 1)


def test_foreign_write_before_the_own_one_conflicts(product, rival):
    """Two writes since it was read, and only one of them ours."""
    rival.execute("UPDATE app_product SET name = 'theirs', version = version + 1")
    with transaction.atomic():
        update(product, stock=1)
        with pytest.raises(StaleObject):
            product.save()
    assert Product.objects.get().name == "theirs"


def test_own_save_of_another_instance_conflicts(product):
    with transaction.atomic():
        update(product, stock=1)
        other = Product.objects.get()
        other.name = "other"
        other.save()
        with pytest.raises(StaleObject):
            product.save()
    assert Product.objects.get().name == "other"


def test_read_after_the_update_needs_no_adoption(product, rival):
    """The row is as it was read; a later write of another instance is not excused by it."""
    with transaction.atomic():
        update(product, stock=1)
        later = Product.objects.get()
        product.refresh_from_db()
        other = Product.objects.get()
        other.name = "other"
        other.save()
        for each in (later, product):
            with pytest.raises(StaleObject):
                each.save()


def test_expected_version_is_not_excused(product):
    with transaction.atomic():
        update(product, stock=1)
        product.expect_version(1)
        with pytest.raises(StaleObject):
            product.save()
        with pytest.raises(StaleObject):
            product.save_cas(expected=1)


def test_own_write_of_an_earlier_transaction_conflicts(product):
    with transaction.atomic():
        update(product, stock=1)
    with transaction.atomic(), pytest.raises(StaleObject):
        product.save()
    product.refresh_from_db()
    update(product, stock=2)  # outside a transaction: committed at once
    with pytest.raises(StaleObject):
        product.save()


def test_rolled_back_update_does_not_count(product):
    with transaction.atomic():
        with pytest.raises(Undo), transaction.atomic():
            update(product, stock=1)
            raise Undo
        overtake(product)
        with pytest.raises(StaleObject):
            product.save()


@pytest.mark.parametrize(
    "rows",
    [
        lambda p: Product.objects.all(),
        lambda p: Product.objects.exclude(pk=0),
        lambda p: Product.objects.filter(pk__gt=0),
        lambda p: Product.objects.filter(pk__in=Product.objects.filter(pk=p.pk)),
        lambda p: Product.objects.filter(pk=F("id")),
        lambda p: Product.objects.filter(pk__in=[p.pk, 0]),
        lambda p: Product.objects.exclude(pk=0) | Product.objects.filter(pk=p.pk),
    ],
)
def test_update_of_unnamed_rows_conflicts(product, rows):
    with transaction.atomic():
        assert rows(product).update(stock=1) == 1
        with pytest.raises(StaleObject):
            product.save()


def test_key_of_a_joined_row_does_not_count(rival):
    """The query names the key of ``mine`` and changes its neighbour."""
    tag = Tag.objects.create(name="a")
    mine, neighbour = (Shelf.objects.create(name=name, main=tag) for name in ("a", "b"))
    table = Shelf._meta.db_table
    with transaction.atomic():
        others = Shelf.objects.filter(main__main_of=mine).exclude(name="a")
        assert others.update(name="next") == 1
        rival.execute(
            f"UPDATE {table} SET note = 'theirs', version = version + 1 WHERE id = {mine.pk}"
        )
        with pytest.raises(StaleObject):
            mine.save()
    assert Shelf.objects.get(pk=mine.pk).note == "theirs"
    assert Shelf.objects.get(pk=neighbour.pk).name == "next"


@pytest.mark.parametrize(
    "rows",
    [
        lambda p: Product.objects.filter(pk=p.pk, name="original"),
        lambda p: Product.objects.filter(id__in=[p.pk]),
        lambda p: Product.objects.filter(id=str(p.pk)),
        lambda p: app.ProductProxy.objects.filter(pk=p.pk),
    ],
)
def test_update_of_named_rows_is_recognised(product, rows):
    with transaction.atomic():
        assert rows(product).update(stock=1) == 1
        product.save()
    assert Product.objects.get().stock == 1


def test_save_after_bulk_update_is_no_conflict(product):
    product.stock = 1
    with transaction.atomic():
        Product.objects.bulk_update([product], ["stock"])
        product.name = "mine"
        product.save()
    assert Product.objects.values_list("name", "stock").get() == ("mine", 1)


def test_own_update_of_a_parents_table_is_no_conflict():
    gadget = Gadget.objects.create(name="a", watts=1)
    with transaction.atomic():
        update(gadget, watts=2, stock=3)
        gadget.name = "mine"
        gadget.save()
        Product.objects.filter(pk=gadget.pk).update(stock=4)
        gadget.save()
    row = Gadget.objects.get()
    assert (row.name, row.watts, row.stock) == ("mine", 2, 4)


def test_two_parents_with_own_keys_conflict():
    coded = app.Coded.objects.create(name="a", code="x")
    with transaction.atomic():
        update(coded, extra="ours")
        with pytest.raises(StaleObject):
            coded.save()


def test_delete_after_an_own_update_is_no_conflict(product):
    with transaction.atomic():
        update(product, stock=1)
        product.delete_cas()
    assert not Product.objects.exists()
    invoice = Invoice.objects.create()
    with transaction.atomic():
        update(invoice, customer="ours")
        invoice.delete_cas()
    assert not Invoice.objects.exists()
    setting = app.Setting.objects.create(name="a")
    with transaction.atomic():
        update(setting, value="ours")
        setting.delete_cas()
    assert not app.Setting.objects.exists()


def test_changed_adopted_value_survives_a_rollback(product):
    with pytest.raises(Undo), transaction.atomic():
        update(product, name="ours")
        product.save()
        product.name = "mine"
        raise Undo
    product.save()
    assert Product.objects.get().name == "mine"


def test_row_deleted_in_the_same_transaction_conflicts(product):
    with transaction.atomic():
        update(product, stock=1)
        Product.objects.all().delete()
        with pytest.raises(StaleObject) as caught:
            product.save()
    assert caught.value.deleted


def test_pickled_instance_does_not_count(product):
    sent = pickle.dumps(product)
    with transaction.atomic():
        update(product, stock=1)
        for twin in (copy.deepcopy(product), copy.copy(product)):
            assert len(own_writes.since(twin, "default")) == 1
        with pytest.raises(StaleObject):
            pickle.loads(sent).save()


def test_remembered_rows_are_bounded(product, monkeypatch):
    monkeypatch.setattr(own_writes, "MOST", 2)
    others = [Product.objects.create(name=str(at)) for at in range(3)]
    with transaction.atomic():
        update(product, stock=1)
        for other in others[:2]:
            update(other, stock=1)
        assert own_writes.since(product, "default") == []
        assert len(own_writes.since(others[1], "default")) == 1
        Product.objects.filter(pk__in=[each.pk for each in others]).update(stock=2)
        with pytest.raises(StaleObject):
            others[0].save()


def test_second_try_still_compares(product, monkeypatch):
    """The row is locked, so it can't be; the second try compares all the same."""
    merge = own_writes.merge

    def and_then(instance, names, row):
        taken = merge(instance, names, row)
        VersionedQuerySet(Product).filter(pk__gt=0).update(stock=5)
        return taken

    monkeypatch.setattr(own_writes, "merge", and_then)
    with transaction.atomic():
        update(product, name="ours")
        with pytest.raises(StaleObject) as caught:
            product.save()
        assert (product.name, product.version) == ("original", 1)
        assert caught.value.expected == 1


class InATestCase(TestCase):
    def test_own_update_counts_only_in_a_block_of_the_code(self):
        product = Product.objects.create(name="a")
        with transaction.atomic():
            update(product, stock=1)
            product.save()
        update(product, stock=2)
        with pytest.raises(StaleObject):
            product.save()


def test_update_of_a_parent_without_a_version_is_a_conflict():
    """The parent's table is written first, so what the update left there could not be merged."""
    special = app.Special.objects.create(name="read", note="read")
    with transaction.atomic():
        update(special, name="updated")
        special.note = "mine"
        with pytest.raises(StaleObject):
            special.save()
        assert app.Special.objects.values_list("name", "note").get() == ("updated", "read")
        special.save(update_fields=["note"])  # writes nothing of the parent's, so it is merged
    assert (special.name, special.version) == ("updated", 3)
    assert app.Special.objects.values_list("name", "note").get() == ("updated", "mine")
