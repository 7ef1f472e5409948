"""What other packages put around models, querysets and managers: a stand-in for each.

The packages themselves are in tests/stacks.
"""

import copy
import threading
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import pytest
from django.db import OperationalError, connection, models, transaction
from django.db.models.deletion import Collector
from django.db.models.options import Options
from django.test.utils import isolate_apps

from django_dblock import (
    StaleObject,
    VersionedManager,
    VersionedModel,
    VersionedQuerySet,
    VersionField,
)
from django_dblock.checks.models import check_models
from django_dblock.versioning.model import expect
from tests.app.models import Bilingual, Branch, Product
from tests.app.versioned_admin import Tree
from tests.helpers.observe import until
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True)


WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid'"


class App:
    app_label = "app"


def check(model):
    return [each.id for each in check_models([model._meta.apps.get_app_config("app")])]


# Base managers: django-polymorphic finds the child class through them.


class CastingQuerySet(VersionedQuerySet):
    pass


class CastingManager(models.Manager.from_queryset(CastingQuerySet)):
    """It makes its querysets itself, as PolymorphicManager does."""

    def get_queryset(self):
        return super().get_queryset()


@isolate_apps("tests.app")
def test_base_manager_named_by_a_parents_meta_is_kept():
    class Casting(models.Model):
        objects: ClassVar = CastingManager()

        class Meta(App):
            abstract = True
            base_manager_name = "objects"

    class Shape(Casting, VersionedModel):
        objects: ClassVar = CastingManager()

        class Meta(App):
            pass

    class Circle(Shape):
        class Meta(App):
            pass

    for model in (Shape, Circle):
        assert type(model._base_manager) is CastingManager
        assert type(model._default_manager) is CastingManager
    assert check(Shape) == []


@isolate_apps("tests.app")
def test_base_manager_of_another_package_is_kept(monkeypatch):
    """django-polymorphic replaces the function that makes Django's automatic base manager."""
    django_s_own = Options.base_manager.func

    def polymorphic(self):
        manager = django_s_own(self)
        if manager.auto_created and issubclass(self.model, Casting):
            manager = CastingManager()
            manager.name, manager.model, manager.auto_created = "_base_manager", self.model, True
        return manager

    monkeypatch.setattr(Options.base_manager, "func", polymorphic)

    class Casting(models.Model):
        class Meta(App):
            abstract = True

    class Shape(VersionedModel, Casting):
        objects: ClassVar = CastingManager()

        class Meta(App):
            pass

    assert type(Shape._base_manager) is CastingManager
    assert check(Shape) == []


@isolate_apps("tests.app")
def test_child_model_gets_its_base_manager():
    class Hiding(VersionedManager):
        def get_queryset(self):
            return super().get_queryset().exclude(pk=1)

    class Parent(VersionedModel):
        class Meta(App):
            pass

    class Child(Parent):
        objects: ClassVar = Hiding()

        class Meta(App):
            pass

    assert Child._base_manager.name == "_versioned"
    assert type(Child._default_manager) is Hiding


# delete(): treebeard's, modelcluster's and Wagtail's take no using=None.


def test_delete_arguments_pass_through():
    branch = Branch.objects.create()
    branch.delete()
    assert Branch.given == ((), {})
    branch = Branch.objects.create()
    branch.delete("default", keep_parents=True)
    assert Branch.given == (("default",), {"keep_parents": True})


def test_compared_delete_passes_on_no_argument_that_was_not_given():
    branch = Branch.objects.create()
    Branch.given = None
    branch.delete_cas()
    assert Branch.given == ((), {})


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_compared_delete_passes_on_another_alias():
    branch = Branch.objects.create()
    Branch.objects.using("other").bulk_create([Branch(pk=branch.pk)])
    Branch.given = None
    branch.delete_cas(using="other")
    assert Branch.given == ((), {"using": "other"})
    assert not Branch.objects.using("other").exists()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_compared_delete_names_an_alias_that_only_the_instance_tells(monkeypatch):
    """treebeard's delete() goes by the class, without the instance as a hint."""

    def delete(self):
        return type(self).objects.filter(pk=self.pk).delete()

    here = Branch.objects.create()
    Branch.objects.using("other").bulk_create([Branch(pk=here.pk)])
    monkeypatch.setattr(Tree, "delete", delete)
    for act in ("delete_cas", "delete"):
        there = Branch.objects.using("other").get()
        expect(there, there.version)
        with pytest.raises(TypeError, match="using"):
            getattr(there, act)()
    assert Branch.objects.exists()
    assert Branch.objects.using("other").exists()


# _update(): django-modeltranslation writes another column.


def test_bulk_save_calls_an_overridden_update(statements):
    rows = [Bilingual.objects.create(name="old") for _ in range(3)]
    stale = Bilingual.objects.get(pk=rows[1].pk)
    overtake(stale, name="theirs")
    for row in rows:
        row.name = "new"
    with statements() as sent:
        assert Bilingual.objects.bulk_save_cas(rows[::-1], ["name"]) == [stale.pk]
    updates = [query["sql"] for query in sent.captured_queries if "UPDATE" in query["sql"]]
    assert len(updates) == 3
    found = Bilingual.objects.order_by("pk").values_list("name", "name_de", "version")
    assert list(found) == [("new", "new", 2), ("theirs", "", 2), ("new", "new", 2)]
    assert [row.version for row in rows] == [2, 1, 2]
    rows[0].save()
    assert Bilingual.objects.bulk_save_cas([rows[2]], ["name"], on_conflict="raise") == []


def test_custom_update_keeps_to_the_querysets_rows():
    first, second = (Bilingual.objects.create(name=name) for name in "ab")
    some = Bilingual.objects.filter(name="a")
    assert some.bulk_save_cas([first, second], ["name"]) == [second.pk]
    some = Bilingual.objects.order_by("-pk")[:1]
    assert some.bulk_save_cas([first, second], ["name"]) == [first.pk]


@isolate_apps("tests.app")
def test_custom_update_with_several_tables_is_refused():
    class Child(Bilingual):
        class Meta(App):
            pass

    with pytest.raises(TypeError, match="one table only"):
        Child.objects.bulk_save_cas([child_of(Child)], ["name"])


def child_of(model):
    child = model(pk=1, id=1, version=1)
    child._state.adding = False
    return child


# bulk_update() of all fields: django-import-export's use_bulk.


@pytest.mark.parametrize("fields", [["name", "version"], ["version", "name", "stock"]])
def test_bulk_update_of_all_fields_bumps(product, fields):
    product.name, product.version = "imported", 99
    assert Product.objects.bulk_update([product], fields, batch_size=10) == 1
    assert Product.objects.values_list("name", "version").get() == ("imported", 2)


def test_bulk_update_of_the_version_alone_is_refused(product):
    with pytest.raises(ValueError, match="Field names"):
        Product.objects.bulk_update([product], ["version"])


# History: copies of a versioned model's fields.


@isolate_apps("tests.app")
def test_history_models_are_left_alone():
    class Tracked(VersionedModel):
        class Meta(App):
            pass

    class Historical(models.Model):
        instance_type = Tracked
        version = VersionField()

        class Meta(App):
            pass

    class Event(models.Model):
        pgh_tracked_model = Tracked
        version = VersionField()

        class Meta(App):
            pass

    class Copied(models.Model):
        class Meta(App):
            pass

    copied = copy.copy(Tracked._meta.get_field("version"))
    copied.contribute_to_class(Copied, "version")
    assert check(Tracked) == []

    class Forgotten(models.Model):
        instance_type = None
        version = VersionField()

        class Meta(App):
            pass

    assert check(Tracked) == ["dblock.E020"]


# Rows that move to another partition while they are written.


@pytest.fixture
def partitioned():
    table = Product._meta.db_table
    columns = (
        f"CREATE TABLE {table}_parts (LIKE {table} INCLUDING DEFAULTS) PARTITION BY LIST (stock)"
    )
    with connection.cursor() as cursor:
        cursor.execute(columns)
        for at in (1, 2):
            part = f"{table}_part{at}"
            cursor.execute(f"CREATE TABLE {part} PARTITION OF {table}_parts FOR VALUES IN ({at})")
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_whole")
        cursor.execute(f"ALTER TABLE {table}_parts RENAME TO {table}")
        cursor.execute(f"INSERT INTO {table} (id, name, price, stock) VALUES (7, 'a', 0, 1)")
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {table}")
        cursor.execute(f"ALTER TABLE {table}_whole RENAME TO {table}")


@contextmanager
def by_hand():
    transaction.set_autocommit(False)
    yield


@pytest.mark.parametrize("write", ["save", "touch_version", "delete_cas"])
@pytest.mark.parametrize("block", [nullcontext, transaction.atomic, by_hand])
def test_row_moved_to_another_partition_is_not_overwritten(
    partitioned, rival, observer, block, write, monkeypatch
):
    monkeypatch.setattr(Collector, "can_fast_delete", lambda *_: True)
    raised = raised_by_moved_row(rival, observer, write, block)
    if block is not nullcontext:
        assert raised.__cause__.sqlstate == "40001"
        assert "run it again with @retry_on_conflict" in raised.__notes__[0]
    else:
        assert isinstance(raised, StaleObject)
        assert (raised.expected, raised.actual) == (1, 2)
    product = Product.objects.get()
    assert (product.name, product.version) == ("a", 2)
    product.save()
    assert version_of(product) == 3


def test_row_moved_during_a_delete_is_not_deleted(partitioned, rival, observer):
    raised = raised_by_moved_row(rival, observer, "delete_cas", nullcontext)
    assert "run it again with @retry_on_conflict" in raised.__notes__[0]
    assert version_of(Product.objects.get()) == 2


def raised_by_moved_row(rival, observer, write, block):
    """Return what a write raises that waits for a row which is being moved."""
    product, raised = Product.objects.get(pk=7), []
    product.name = "mine"

    def run():
        try:
            with block():
                getattr(product, write)()
        except (StaleObject, OperationalError) as error:
            raised.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    with rival.transaction():
        rival.execute("UPDATE app_product SET stock = 2, version = version + 1")
        thread.start()
        until(lambda: observer.execute(WAITING).fetchone(), "the write waits for the row")
    thread.join()
    [error] = raised
    return error
