"""An instance that was read from a row which its own transaction had written, and rolled back.

The version in memory never came to be. One write of another client later the row has that number,
and a comparison with it would overwrite that client's write.
"""

import threading
from contextlib import suppress

import pytest
from django.db import connections, transaction
from django.db.models.query_utils import DeferredAttribute
from django.test import TestCase

from django_dblock import StaleObject
from django_dblock.versioning import rollback
from tests.app import models as app
from tests.app.models import Gadget, Product
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class Undo(Exception):
    pass


def save(product):
    Product.objects.get(pk=product.pk).save()


def update_by_name(product):
    Product.objects.filter(name=product.name).update(stock=9)


WRITES = {
    "save": save,
    "save_cas": lambda product: Product.objects.get(pk=product.pk).save_cas(),
    "touch": lambda product: Product.objects.get(pk=product.pk).touch_version(),
    "update of a named row": lambda product: Product.objects.filter(pk=product.pk).update(stock=9),
    "update of unnamed rows": update_by_name,
    "bulk_update": lambda product: Product.objects.bulk_update([product], ["name"]),
    "bulk_save_cas": lambda product: Product.objects.bulk_save_cas([product], ["name"]),
}


@pytest.fixture(autouse=True)
def _no_reader_before():
    rollback.uncommitted.by_alias.clear()


def read_and_roll_back(product, write, read=lambda product: Product.objects.get(pk=product.pk)):
    with pytest.raises(Undo), transaction.atomic():
        write(product)
        found = read(product)
        raise Undo
    return found


def assert_not_trusted(instance, row):
    overtake(row)
    assert instance.version == version_of(row) == 2
    with pytest.raises(StaleObject, match="rolled back"):
        instance.save()
    assert Product.objects.get(pk=row.pk).name == "theirs"


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_instance_read_after_a_write_is_not_trusted(product, write):
    assert_not_trusted(read_and_roll_back(product, write), product)


def test_instance_refreshed_after_a_write_is_not_trusted(product):
    again = Product.objects.get(pk=product.pk)

    def refresh(product):
        again.refresh_from_db()
        return again

    assert_not_trusted(read_and_roll_back(product, update_by_name, refresh), product)


def test_version_fetched_for_peers_after_a_write_is_not_trusted(product, monkeypatch):
    """Django 6.1 with FETCH_PEERS; before that, the same call."""

    def fetch_many(attribute, instances):
        for each in instances:
            each.version = version_of(each)

    if not hasattr(DeferredAttribute, "fetch_many"):
        monkeypatch.setattr(DeferredAttribute, "fetch_many", fetch_many, raising=False)

    def read(product):
        bare = Product.objects.only("pk").get(pk=product.pk)
        Product.version.fetch_many([bare])
        return bare

    found = read_and_roll_back(product, WRITES["update of a named row"], read)
    found.name = "mine"
    assert_not_trusted(found, product)


def test_saved_then_refreshed_instance_compares_its_old_version(product, statements):
    with pytest.raises(Undo), transaction.atomic():
        product.name = "mine"
        product.save()
        product.refresh_from_db()
        raise Undo
    with statements() as sent:
        product.save()
    assert len(sent) == 1
    assert product.version == version_of(product) == 2
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        product.refresh_from_db()
        raise Undo
    overtake(product)
    with pytest.raises(StaleObject) as caught:
        product.save()
    assert (caught.value.expected, caught.value.actual) == (2, 3)


def test_refresh_in_a_rolled_back_savepoint_is_not_trusted(product):
    with transaction.atomic():
        product.save()
        with pytest.raises(Undo), transaction.atomic():
            save(product)
            product.refresh_from_db()
            raise Undo
    overtake(product)
    with pytest.raises(StaleObject, match="rolled back"):
        product.save()


def test_rolled_back_savepoint_counts_as_a_rollback(product):
    with transaction.atomic():
        found = read_and_roll_back(product, save)
    assert_not_trusted(found, product)


def test_rollback_around_a_released_savepoint_counts(product):
    def write(product):
        with transaction.atomic():
            save(product)

    assert_not_trusted(read_and_roll_back(product, write), product)


def test_outer_write_counts_after_an_inner_rollback(product):
    def write(product):
        save(product)
        with pytest.raises(Undo), transaction.atomic():
            save(product)
            raise Undo

    assert_not_trusted(read_and_roll_back(product, write), product)


def test_read_of_an_untouched_row_is_trusted(product):
    other = Product.objects.create(name="other")
    with pytest.raises(Undo), transaction.atomic():
        save(product)
        found = Product.objects.get(pk=other.pk)
        raise Undo
    found.save()
    assert found.version == version_of(other) == 2


def test_read_before_the_write_is_trusted(product):
    with pytest.raises(Undo), transaction.atomic():
        found = Product.objects.get(pk=product.pk)
        save(product)
        raise Undo
    found.save()
    assert found.version == version_of(product) == 2


def test_read_of_a_committed_write_is_trusted(product, statements):
    with transaction.atomic():
        save(product)
        found = Product.objects.get(pk=product.pk)
        found.save()
    with statements() as sent:
        found.save()
    assert len(sent) == 1
    assert found.version == version_of(product) == 4


def test_read_after_the_rollback_is_trusted(product):
    read_and_roll_back(product, save)
    found = Product.objects.get(pk=product.pk)
    found.save()
    assert found.version == version_of(product) == 2


def test_read_of_another_table_is_trusted(product):
    invoice = app.Invoice.objects.create()
    with pytest.raises(Undo), transaction.atomic():
        save(product)
        found = app.Invoice.objects.get(pk=invoice.pk)
        raise Undo
    found.save()
    assert found.version == version_of(invoice) == 2


def test_deferred_version_has_nothing_to_distrust(product):
    with transaction.atomic():
        save(product)
        assert "_version_written" not in Product.objects.only("name").get(pk=product.pk).__dict__


def test_other_thread_reads_what_is_committed(product):
    found = []

    def read():
        found.append(Product.objects.get(pk=product.pk))
        connections.close_all()

    with pytest.raises(Undo), transaction.atomic():
        save(product)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        raise Undo
    found[0].save()
    assert version_of(product) == 2


def test_parent_row_of_a_child_is_not_trusted():
    gadget = Gadget.objects.create(name="g")
    with pytest.raises(Undo), transaction.atomic():
        Product.objects.filter(pk=gadget.pk).update(name="x")
        found = Gadget.objects.get(pk=gadget.pk)
        raise Undo
    overtake(gadget)
    with pytest.raises(StaleObject, match="rolled back"):
        found.save()


def test_read_of_a_row_written_by_composite_key_is_not_trusted():
    place = app.Place.objects.create(row="A", number=1)
    with pytest.raises(Undo), transaction.atomic():
        app.Place.objects.filter(pk=("A", "1")).update(guest="Ann")
        found = app.Place.objects.get(pk=place.pk)
        raise Undo
    overtake(place, guest="Eve")
    with pytest.raises(StaleObject, match="rolled back"):
        found.save()


def test_many_rows_count_as_all_rows(product, monkeypatch):
    monkeypatch.setattr(rollback, "MOST", 2)
    others = [Product.objects.create(name=str(number)) for number in range(3)]

    def write(product):
        for each in others:
            each.save()
        save(product)

    assert_not_trusted(read_and_roll_back(product, write), product)


def test_committed_writes_are_forgotten_at_the_next_read(product):
    with transaction.atomic():
        save(product)
    assert rollback.uncommitted.by_alias
    with transaction.atomic():
        Product.objects.get(pk=product.pk)
        assert not rollback.uncommitted.by_alias


def test_rolled_back_writes_are_forgotten_at_the_next_write(product):
    read_and_roll_back(product, save)
    place = app.Place.objects.create(row="A", number=1)
    with transaction.atomic():
        assert "_version_written" not in Product.objects.get(pk=product.pk).__dict__
        place.save()
        assert set(rollback.uncommitted.by_alias["default"].tables) == {app.Place}
        place.save()
        Product.objects.get(pk=product.pk).save()
        assert set(rollback.uncommitted.by_alias["default"].tables) == {app.Place, Product}


def fates_of(product):
    return rollback.uncommitted.by_alias["default"].tables[Product][product.pk]


@pytest.mark.parametrize("undone", [(), (1,), (0, 2), (0, 1, 2)])
def test_savepoints_in_a_row_need_two_fates(product, undone):
    with transaction.atomic():
        with transaction.atomic():
            for number in range(4):
                with suppress(Undo), transaction.atomic():
                    save(product)
                    if number in undone:
                        raise Undo
            assert len(fates_of(product)) <= 2
            found = Product.objects.get(pk=product.pk)
            save(product)
            assert len(fates_of(product)) == 1
        transaction.set_rollback(True)
    while version_of(product) < found.version:
        overtake(product)
    with pytest.raises(StaleObject, match="rolled back"):
        found.save()


def test_nested_savepoints_keep_one_fate_each(product):
    with transaction.atomic():
        save(product)
        with transaction.atomic():
            save(product)
            with transaction.atomic():
                save(product)
                assert len(fates_of(product)) == 3
            save(product)
            assert len(fates_of(product)) == 2
        save(product)
        assert len(fates_of(product)) == 1


def test_named_and_unnamed_writes_end_with_the_inner_savepoint(product):
    with transaction.atomic():
        save(product)
        with pytest.raises(Undo), transaction.atomic():
            update_by_name(product)
            found = Product.objects.get(pk=product.pk)
            raise Undo
        with pytest.raises(StaleObject, match="rolled back"):
            found.save()
        with transaction.atomic():
            Product.objects.get(pk=product.pk).save()


class InATestCase(TestCase):
    """A rollback goes unnoticed in a TestCase, so nothing is remembered, however long it runs."""

    databases = {"default", "other"}  # noqa: RUF012

    def test_nothing_is_remembered_in_a_testcase(self):
        rollback.uncommitted.by_alias.clear()
        product = Product.objects.create(name="a")
        with transaction.atomic():
            product.save()
            Product.objects.filter(name="a").update(stock=1)
        assert not rollback.uncommitted.by_alias
