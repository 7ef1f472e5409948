"""Rollbacks: a version that was rolled back is never compared with."""

import copy
import pickle
import threading

import pytest
from django.db import OperationalError, connection, transaction
from django.db.utils import DatabaseError, IntegrityError
from django.test import TestCase

from django_dblock import StaleObject, conflict_diff
from tests.app import models as app
from tests.app.models import Gadget, Product
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class Undo(Exception):
    pass


def assert_rolled_back(instance):
    """It says so, whatever number the row has by now: also the one that was rolled back."""
    seen = instance.version
    for write in (instance.save, instance.save_cas, instance.delete_cas, instance.touch_version):
        with pytest.raises(StaleObject, match="rolled back") as caught:
            write()
        assert caught.value.rolled_back
        assert instance.version == seen


WRITES = [
    lambda p: p.save(),
    lambda p: p.save_cas(),
    lambda p: p.save_cas(update_fields=["name"]),
    lambda p: p.touch_version(),
    lambda p: Product.objects.bulk_save_cas([p], ["name"]),
]


def assert_earlier_version_is_known(instance, statements):
    """The next save compares with the version from before the rollback, at no extra statement."""
    version = version_of(instance)
    with statements() as sent:
        instance.save()
    assert len(sent) == 1
    assert instance.version == version_of(instance) == version + 1


def assert_conflict(instance, *, expected, actual):
    with pytest.raises(StaleObject) as caught:
        instance.save()
    error = caught.value
    assert (error.expected, error.actual, error.rolled_back) == (expected, actual, False)


@pytest.mark.parametrize("write", WRITES)
def test_after_a_rollback_the_earlier_version_is_known(product, write, statements):
    with pytest.raises(Undo), transaction.atomic():
        write(product)
        raise Undo
    assert (product.version, version_of(product)) == (2, 1)
    assert_earlier_version_is_known(product, statements)


@pytest.mark.parametrize("write", WRITES[:4])
def test_writes_after_a_rollback_compare_the_earlier_version(product, write):
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    write(product)
    assert product.version == version_of(product) == 2
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    product.delete_cas()


def test_after_a_rollback_the_original_is_the_earlier_one(product):
    product.name = "mine"
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    overtake(product, stock=3)
    with pytest.raises(StaleObject) as caught:
        product.save()
    name = conflict_diff(caught.value).fields["name"]
    assert (name.original, name.mine, name.theirs) == ("original", "mine", "original")


def test_sequential_and_nested_rollbacks_restore_the_version(product, statements):
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        with pytest.raises(Undo), transaction.atomic():
            product.save()
            product.save()
            with transaction.atomic():
                product.save()
            raise Undo
        product.save()
        assert product.version == version_of(product) == 3
        raise Undo
    assert_earlier_version_is_known(product, statements)


def test_rollback_after_a_commit_restores_the_committed_version(product, statements):
    with transaction.atomic():
        product.save()
    with pytest.raises(Undo), transaction.atomic():
        product.save_cas(expected=2)
        raise Undo
    assert_earlier_version_is_known(product, statements)


def test_rollback_of_many_savepoints_distrusts_the_version(product):
    with pytest.raises(Undo), transaction.atomic():
        for _ in range(25):
            with transaction.atomic():
                product.save()
        raise Undo
    with pytest.raises(StaleObject) as caught:
        product.save()
    assert caught.value.rolled_back


def test_version_of_an_unread_row_is_not_known_after_a_rollback(product):
    unread = Product(pk=product.pk, name="mine")
    with pytest.raises(Undo), transaction.atomic():
        unread.save_cas(expected=1)
        raise Undo
    assert_rolled_back(unread)


def test_version_set_by_hand_is_not_restored(product):
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    product.version = 7
    with pytest.raises(StaleObject) as caught:
        product.save()
    assert caught.value.expected == 7


@pytest.mark.parametrize("write", WRITES[:4])
def test_same_number_reached_by_another_writer_is_a_conflict(product, write):
    """ABA: both wrote version 2, and ours never was."""
    product.name = "mine"
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    overtake(product)
    assert version_of(product) == product.version == 2
    with pytest.raises(StaleObject) as caught:
        write(product)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert not caught.value.rolled_back
    assert Product.objects.get().name == "theirs"


def test_expected_overrides_the_restored_version(product):
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    product.save_cas(expected=1)
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        raise Undo
    product.expect_version(2)
    product.save()
    assert version_of(product) == 3


@pytest.mark.parametrize("write", [WRITES[0], WRITES[2], WRITES[4]])
def test_rolled_back_savepoint_restores_the_version(product, write, statements):
    with transaction.atomic():
        with pytest.raises(Undo), transaction.atomic():
            write(product)
            raise Undo
        assert_earlier_version_is_known(product, statements)
        with pytest.raises(Undo), transaction.atomic():
            write(product)
            raise Undo
        overtake(product)
        assert version_of(product) == product.version == 3
        assert_conflict(product, expected=2, actual=3)
    overtake(product)
    assert_conflict(product, expected=2, actual=4)


def test_released_savepoint_is_rolled_back_with_its_transaction(product, statements):
    with pytest.raises(Undo), transaction.atomic():
        with transaction.atomic():
            product.save()
        product.save()
        assert version_of(product) == 3
        raise Undo
    assert_earlier_version_is_known(product, statements)


def test_write_before_a_savepoint_survives_its_rollback(product):
    with transaction.atomic():
        product.save()
        with pytest.raises(Undo), transaction.atomic():
            Product.objects.create(name="other")
            raise Undo
        product.save()
    product.save()
    assert version_of(product) == 4


def test_only_the_write_in_the_rolled_back_savepoint_is_undone(product):
    other = Product.objects.create(name="other")
    with transaction.atomic():
        product.save()
        with pytest.raises(Undo), transaction.atomic():
            other.save()
            raise Undo
        product.save()
    overtake(other)
    assert version_of(other) == other.version == 2
    assert_conflict(other, expected=1, actual=2)
    product.save()
    assert version_of(product) == 4


def test_set_rollback_restores_the_version(product, statements):
    with transaction.atomic():
        product.save()
        transaction.set_rollback(True)
    assert_earlier_version_is_known(product, statements)


def test_later_failed_statement_restores_the_version(product, statements):
    with pytest.raises(IntegrityError), transaction.atomic():
        product.save()
        Product.objects.create(pk=product.pk, name="again")
    assert_earlier_version_is_known(product, statements)


def test_failed_commit_restores_the_version(statements):
    app.Note.objects.create(name="taken")
    note = app.Note.objects.create(name="free")
    note.name = "taken"
    with pytest.raises(IntegrityError), transaction.atomic():
        note.save()
    overtake(note, name="theirs")
    assert version_of(note) == note.version
    assert_conflict(note, expected=1, actual=2)


def test_lost_connection_restores_the_version(product, rival, statements):
    with pytest.raises(OperationalError), transaction.atomic():
        product.save()
        rival.execute(
            "SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid]
        )
        Product.objects.count()
    connection.close()
    assert_earlier_version_is_known(product, statements)


def test_closed_connection_restores_the_version(product):
    with pytest.raises(DatabaseError), transaction.atomic():
        product.save()
        connection.close()
        Product.objects.count()
    overtake(product)
    assert version_of(product) == product.version
    assert_conflict(product, expected=1, actual=2)


@pytest.mark.parametrize("model", [Product, Gadget, app.Invoice])
def test_rolled_back_insert_is_not_trusted(model):
    instance = model()
    with pytest.raises(Undo), transaction.atomic():
        instance.save()
        raise Undo
    assert_rolled_back(instance)
    instance._state.adding = True
    instance.save(force_insert=True)
    instance.save()
    assert version_of(instance) == 2


@pytest.mark.parametrize("given", [{}, {"batch_size": 1}])
def test_rolled_back_bulk_create_is_not_trusted(given):
    """With a pk that another writer has used since, the numbers are the same."""
    invoices = [app.Invoice(customer="mine"), app.Invoice(customer="mine")]
    with pytest.raises(Undo), transaction.atomic():
        app.Invoice.objects.bulk_create(invoices, **given)
        raise Undo
    app.Invoice.objects.create(pk=invoices[0].pk, customer="theirs")
    for invoice in invoices:
        assert_rolled_back(invoice)


def test_copy_is_restored_with_its_original(product):
    with pytest.raises(Undo), transaction.atomic():
        product.save()
        twins = [copy.copy(product), copy.deepcopy(product), pickle.loads(pickle.dumps(product))]
        raise Undo
    overtake(product)
    for twin in twins:
        assert twin.version == version_of(product) == 2
        assert_conflict(twin, expected=1, actual=2)


def test_parent_object_of_a_rolled_back_child_is_restored():
    """Django makes it of the child's values, the rolled-back version among them."""
    gadget = Gadget.objects.get(pk=Gadget.objects.create(name="a").pk)
    with pytest.raises(Undo), transaction.atomic():
        gadget.save()
        raise Undo
    parent = gadget.product_ptr
    overtake(Product.objects.get(pk=gadget.pk))
    assert parent.version == version_of(parent) == 2
    assert_conflict(parent, expected=1, actual=2)


def test_uncommitted_version_is_invisible_to_other_threads(product):
    """What it wrote is not there for them: they can't compare with it."""
    found = []

    def other_thread():
        try:
            product.delete_cas()
        except StaleObject as error:
            found.append(error.rolled_back)
        finally:
            connection.close()

    with transaction.atomic():
        product.save()
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert found == [True]
    product.save()


def test_savepoint_rolled_back_by_hand_is_noticed(product):
    for write in WRITES[:3]:  # touch_version() has been there already, as far as it can know
        with transaction.atomic():
            before = version_of(product)
            point = connection.savepoint()
            product.save()
            connection.savepoint_rollback(point)
            assert (product.version, version_of(product)) == (before + 1, before)
            write(product)
            assert product.version == version_of(product) == before + 1
            point = connection.savepoint()
            product.save()
            connection.savepoint_rollback(point)
            overtake(product)
            overtake(product)
            with pytest.raises(StaleObject):
                write(product)
        product.refresh_from_db()
    with transaction.atomic():
        point = connection.savepoint()
        product.save()
        connection.savepoint_rollback(point)
        product.delete_cas()
    assert not Product.objects.exists()


def test_rollback_of_a_manual_transaction_is_noticed(product):
    transaction.set_autocommit(False)
    try:
        product.save()
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert_rolled_back(product)


@pytest.fixture
def by_hand():
    """Manage the test's transactions by hand."""
    transaction.set_autocommit(False)
    yield
    transaction.rollback()
    transaction.set_autocommit(True)


def test_conflict_in_two_tables_leaves_manual_transaction_usable(db, by_hand):
    gadget = Gadget.objects.create(name="a", watts=1)
    overtake(gadget)
    with pytest.raises(StaleObject):
        gadget.save()
    assert Product.objects.get().name == "theirs"
    transaction.commit()
    gadget.refresh_from_db()
    gadget.watts = 3
    gadget.save()
    transaction.rollback()
    assert Gadget.objects.get().watts == 1


def test_touch_bumps_after_the_commit_of_a_manual_transaction(product, by_hand):
    with transaction.atomic():
        product.save()
    transaction.commit()
    product.touch_version()
    assert version_of(product) == product.version == 3


# on_commit


def test_failing_commit_hook_keeps_the_version(product):
    def fail():
        raise Undo

    with pytest.raises(Undo), transaction.atomic():
        transaction.on_commit(fail)
        product.save()
    product.save()
    assert version_of(product) == 3


def test_hook_may_save_again(product):
    with transaction.atomic():
        transaction.on_commit(product.save)
        product.save()
        with transaction.atomic():
            transaction.on_commit(product.touch_version)
            product.save()
    assert product.version == version_of(product) == 5


def test_commit_hooks_run_once(product):
    ran = []
    with transaction.atomic():
        for _ in range(3):
            product.save()
            transaction.on_commit(lambda: ran.append(1))
        assert len(connection.run_on_commit) == 4, "one entry of ours for all writes of a block"
    assert ran == [1, 1, 1]
    assert connection.run_on_commit == []


def test_outside_a_transaction_nothing_is_remembered(product):
    product.save()
    assert "_version_fate" not in product.__dict__


# Tests of users


class InATestCase(TestCase):
    """The test's own blocks are no transaction of the code under test."""

    databases = {"default", "other"}  # noqa: RUF012

    def test_captured_callbacks_are_only_the_users(self):
        product = Product.objects.create(name="a")
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            product.save()
            with transaction.atomic():
                product.save()
                transaction.on_commit(lambda: None)
        assert len(callbacks) == 1
        assert version_of(product) == 3

    def test_touch_once_per_transaction(self):
        product = Product.objects.create(name="a")
        with transaction.atomic():
            product.touch_version()
            with self.assertNumQueries(0):
                product.touch_version()
            with transaction.atomic(), self.assertNumQueries(0):
                product.touch_version()
        with transaction.atomic(), self.assertNumQueries(1):
            product.touch_version()
        with self.assertNumQueries(1):
            product.touch_version()
        with transaction.atomic(savepoint=False), self.assertNumQueries(1):
            product.touch_version()
        assert version_of(product) == 5

    def test_testcase_rollback_is_noticed(self):
        product = Product.objects.create(name="a")
        with pytest.raises(Undo), transaction.atomic():
            product.save()
            raise Undo
        product.save()
        assert product.version == version_of(product) == 2

    def test_conflict_leaves_the_test_usable(self):
        product = Product.objects.create(name="a")
        overtake(product)
        with pytest.raises(StaleObject):
            product.save()
        assert Product.objects.count() == 1
