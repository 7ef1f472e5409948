"""The state of an instance: a bound delete, the outcome of its transaction, a save in progress."""

import copy
import pickle
import threading

import pytest
from django.db import connection, models, transaction
from django.db.models.signals import pre_save

from django_dblock import StaleObject
from django_dblock.versioning.model import expect
from tests.app.models import Fussy, Gadget, Managed, Product, Setting
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True)


def bound(product):
    expect(product, product.version)
    return product


def test_bound_delete_compares(product):
    bound(product)
    overtake(product)
    for _ in range(2):
        with pytest.raises(StaleObject):
            product.delete()
    assert Product.objects.exists()


def test_bound_delete_deletes_an_unchanged_row(product):
    assert bound(product).delete()[0] == 1


def test_copy_with_another_key_deletes_its_row(product):
    other = copy.copy(bound(product))
    other.pk, other._state.adding = None, True
    other.save()
    other.delete()
    assert list(Product.objects.all()) == [product]


@pytest.fixture
def logged(monkeypatch):
    """What the overridden delete() of a Fussy has noted."""
    seen = []

    def delete(self, *args, **options):
        seen.append(self.name)
        return super(Fussy, self).delete(*args, **options)

    monkeypatch.setattr(Fussy, "delete", delete)
    return seen


def test_bound_delete_runs_an_override_once(logged):
    row = bound(Fussy.objects.create(name="a"))
    row.delete()
    assert logged == ["a"]
    assert not Fussy.objects.exists()


def test_bound_delete_with_an_override_compares(logged):
    row = bound(Fussy.objects.create(name="a"))
    overtake(row)
    for _ in range(2):
        with pytest.raises(StaleObject):
            row.delete()
    assert logged == ["a", "a"]
    assert Fussy.objects.exists()


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((), {"keep_parents": True}),
        ((), {"using": None, "keep_parents": True}),
        ((None, True), {}),
        (("default", True), {}),
    ],
)
def test_bound_delete_keeps_parents(args, options):
    gadget = bound(Gadget.objects.create(name="a"))
    assert gadget.delete(*args, **options) == (1, {"app.Gadget": 1})
    assert Product.objects.get().name == "a"


def test_save_unbinds_delete(product):
    bound(product).save()
    assert product.delete()[0] == 1


def test_bound_instance_can_be_pickled(product):
    again = pickle.loads(pickle.dumps(bound(product)))
    overtake(product)
    with pytest.raises(StaleObject):
        again.delete()


def test_pickle_from_a_rolled_back_transaction_is_untrusted(product):
    """As when a view puts an object into the cache and fails afterwards."""
    with transaction.atomic():
        product.stock = 7
        product.save()
        kept = pickle.dumps(product)
        transaction.set_rollback(True)
    overtake(product, stock=100)
    again = pickle.loads(kept)
    assert again.version == version_of(product) == 2
    with pytest.raises(StaleObject) as caught:
        again.save()
    assert caught.value.expected == 1


def test_pickle_from_a_committed_transaction_is_trusted(product):
    with transaction.atomic():
        product.save()
        kept = pickle.dumps(product)
    again = pickle.loads(kept)
    again.save()
    assert again.version == version_of(product) == 3


def test_remembered_pickles_are_bounded(product, monkeypatch):
    from django_dblock.versioning import rollback as fate

    monkeypatch.setattr(fate, "_MOST_PICKLED", 1)
    monkeypatch.setattr(fate, "_pickled", {})
    with transaction.atomic():
        product.save()
        kept = [pickle.dumps(product), pickle.dumps(product)]
        assert len(fate._pickled) == 1
        fate._pickled.clear()
    pickle.loads(kept[0]).save()


def test_concurrent_saves_of_one_instance_compare(product):
    """The other thread begins and ends inside this one's save, and somebody writes after it."""

    def save():
        product.save()
        connection.close()

    def meanwhile(**_):
        pre_save.disconnect(meanwhile, sender=Product)
        other = threading.Thread(target=save)
        other.start()
        other.join()
        product.version -= 1  # as this thread read it
        overtake(product, stock=100)

    pre_save.connect(meanwhile, sender=Product)
    with pytest.raises(StaleObject):
        product.save()
    assert Product.objects.get().stock == 100


def test_base_manager_is_not_in_migrations():
    assert Product._base_manager is Product._meta.managers_map["objects"]
    assert "base_manager_name" not in Product._meta.original_attrs
    assert Managed._base_manager.name == "objects"


def test_filtering_manager_is_not_the_base_manager():
    class Hiding(type(Product.objects)):
        def get_queryset(self):
            return super().get_queryset().filter(stock=0)

    class Hidden(Product.__mro__[1]):
        stock = models.IntegerField(default=0)
        objects = Hiding()

        class Meta:
            app_label = "app"

    assert Hidden._default_manager.name == "objects"
    assert Hidden._base_manager.name == "_versioned"


def test_refresh_restores_an_unknown_version():
    setting = Setting.objects.create(name="a")
    setting.save()
    assert "version" not in vars(setting)
    setting.refresh_from_db()
    setting.save_cas()
    assert setting.version == 3


def test_failed_refresh_leaves_the_instance_unchanged():
    setting = Setting.objects.create(name="a")
    gone = Setting.objects.get()
    setting.save()
    Setting.objects.all().delete()
    for instance, known in ((setting, False), (gone, True)):
        with pytest.raises(Setting.DoesNotExist):
            instance.refresh_from_db()
        assert ("version" in vars(instance)) is known


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_saves_on_two_aliases_each_advance_the_version(product):
    Product.objects.using("other").create(pk=product.pk, name="a", version=2)
    with transaction.atomic(), transaction.atomic(using="other"):
        product.save()
        product.save(using="other")
    assert product.version == 3
