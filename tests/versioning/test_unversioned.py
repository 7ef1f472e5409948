"""Unversioned fields: a save of only these neither compares nor bumps."""

import pytest
from django.core import checks
from django.db import connection, models, transaction
from django.db.models import F
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import post_save, pre_save
from django.test.utils import isolate_apps

from django_dblock import StaleObject, VersionedModel, bypass_versions, conflict_diff
from django_dblock.checks.models import check_models
from django_dblock.versioning import save
from tests.app.models import Gadget, Member, Product, Shelf
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def member():
    return Member.objects.get(pk=Member.objects.create(name="ann").pk)


def test_save_of_unversioned_fields_neither_compares_nor_bumps(member, statements):
    overtake(member)
    member.views = 3
    with statements() as sent:
        member.save(update_fields=["views"])
    [query] = sent.captured_queries
    assert query["sql"] == (
        f'UPDATE "app_member" SET "views" = 3 WHERE "app_member"."id" = {member.pk}'
    )
    assert (member.version, version_of(member)) == (1, 2)
    with pytest.raises(StaleObject):
        member.save()


def count(member):
    """Count a view, as another request does; no version shows that."""
    Member.objects.filter(pk=member.pk).update(views=F("views") + 1)


def rename_by_save(member):
    member.save()


def rename_by_save_cas(member):
    member.save_cas()


def rename_without_comparing(member):
    member.cas_on_save = False
    member.save()


@pytest.mark.parametrize("rename", [rename_by_save, rename_by_save_cas, rename_without_comparing])
def test_save_of_all_fields_keeps_what_was_counted_since(member, rename):
    count(member)
    member.name = "bob"
    rename(member)
    count(member)
    rename(member)
    assert Member.objects.values_list("name", "views", "version").get() == ("bob", 2, 3)


def test_save_of_all_loaded_fields_keeps_what_was_counted_since(member):
    """Django names the loaded fields as update_fields."""
    read = Member.objects.defer("last_shelf").get()
    count(member)
    read.name = "bob"
    read.save()
    assert Member.objects.values_list("name", "views").get() == ("bob", 1)


@pytest.fixture
def fetch_peers(monkeypatch):
    """Django 6.1 with FETCH_PEERS; before that, the same call."""

    def fetch_many(attribute, instances):
        name = attribute.field.attname
        for each in instances:
            setattr(each, name, Member.objects.values_list(name, flat=True).get(pk=each.pk))

    if not hasattr(DeferredAttribute, "fetch_many"):
        monkeypatch.setattr(DeferredAttribute, "fetch_many", fetch_many, raising=False)


@pytest.mark.usefixtures("member", "fetch_peers")
def test_field_fetched_for_peers_keeps_what_was_counted_since():
    read = Member.objects.defer("views", "last_shelf").get()
    for attribute in (Member.views, Member.last_shelf_id):
        attribute.fetch_many([read])
    rename_after_a_count(read)


def rename_after_a_count(read):
    shelf = Shelf.objects.create()
    Member.objects.update(views=3, last_shelf=shelf)
    read.name = "bob"
    read.save()
    found = Member.objects.values_list("name", "views", "last_shelf", "version").get()
    assert found == ("bob", 3, shelf.pk, 2)


@isolate_apps("tests.app")
@pytest.mark.usefixtures("member", "fetch_peers")
def test_proxy_keeps_what_was_counted_since():
    class Guest(Member):
        class Meta:
            app_label = "app"
            proxy = True

    read = Guest.objects.defer("views", "last_shelf").get()
    for attribute in (Guest.views, Guest.last_shelf_id):
        attribute.fetch_many([read])
    rename_after_a_count(read)


@isolate_apps("tests.app")
@pytest.mark.usefixtures("fetch_peers")
def test_child_keeps_what_was_counted_since():
    class Staff(Member):
        room = models.IntegerField(default=0)

        class Meta:
            app_label = "app"

    with connection.schema_editor() as editor:
        editor.create_model(Staff)
    try:
        Staff.objects.create(name="ann")
        read = Staff.objects.defer("views", "last_shelf").get()
        for attribute in (Staff.views, Staff.last_shelf_id):
            attribute.fetch_many([read])
        rename_after_a_count(read)
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Staff)


@pytest.fixture
def counted_gadgets(monkeypatch):
    """The child's table of a gadget has one field, which others count up."""
    monkeypatch.setattr(Gadget, "unversioned", {"watts"})
    save.unversioned_names.cache_clear()
    yield
    save.unversioned_names.cache_clear()


@pytest.mark.usefixtures("counted_gadgets")
def test_table_with_nothing_but_unversioned_fields_is_left_alone():
    gadget = Gadget.objects.get(pk=Gadget.objects.create(name="a").pk)
    Gadget.objects.filter(pk=gadget.pk).update(watts=F("watts") + 1)
    gadget.name = "b"
    gadget.save()
    assert Gadget.objects.values_list("name", "watts", "version").get() == ("b", 1, 2)


def test_named_fields_are_written_as_they_are(member):
    count(member)
    member.save(update_fields=["name", "views"])
    assert Member.objects.get().views == 0


def test_save_of_all_fields_writes_a_changed_unversioned_field(member):
    member.views = 7
    member.save()
    assert Member.objects.get().views == 7
    count(member)
    member.views = F("views") + 10
    member.save()
    assert Member.objects.get().views == 18


def test_refresh_by_a_partial_queryset_keeps_an_unsaved_value(member):
    member.views = 7
    member.refresh_from_db(from_queryset=Member.objects.only("name"))
    member.save()
    assert Member.objects.get().views == 7


@pytest.mark.parametrize("names", [["views"], None])
def test_counter_that_an_expression_has_changed_is_known(member, names):
    """Django returns the new value from 6.0 on, and leaves the expression before."""
    member.views = F("views") + 1
    member.save(update_fields=names)
    if hasattr(member.views, "resolve_expression"):
        member.refresh_from_db()
    assert member.views == 1
    count(member)
    member.save()
    assert Member.objects.get().views == 2


def test_new_and_unread_instances_write_all_fields(member):
    created = Member.objects.create(name="new", views=3)
    assert Member.objects.get(pk=created.pk).views == 3
    Member(pk=member.pk, name="by hand", views=4).save_cas(expected=1)
    assert Member.objects.get(pk=member.pk).views == 4


def test_bypassed_save_writes_all_fields(member):
    count(member)
    with bypass_versions():
        member.save()
    assert Member.objects.get().views == 0


def test_bypassed_save_is_known_to_have_written(member):
    member.views = 1
    with bypass_versions():
        member.save()
    count(member)
    member.save()
    assert Member.objects.get().views == 2


def test_foreign_key_can_be_named_by_column(member):
    member.save(update_fields=["last_shelf"])
    member.last_shelf = Shelf.objects.create()
    member.save(update_fields=["last_shelf_id", "views"])
    Member.objects.update(last_shelf=None)
    Member.objects.update(last_shelf_id=None)
    assert version_of(member) == 1


@pytest.mark.parametrize("fields", [["views", "name"], ["name"], ["version"]])
def test_mixed_saves_compare_and_bump(member, fields):
    member.save(update_fields=fields)
    assert member.version == version_of(member) == 2
    overtake(member)
    with pytest.raises(StaleObject):
        member.save(update_fields=fields)


def test_save_with_only_unversioned_fields_loaded(member):
    for names in (["views"], ["views", "version"]):
        partly = Member.objects.only(*names).get()
        overtake(member)
        partly.views = 7
        partly.save()
    assert (Member.objects.get().views, version_of(member)) == (7, 3)


def test_version_in_update_fields_is_not_written(member):
    told = []

    def hear(update_fields, **_):
        told.append(update_fields)

    pre_save.connect(hear, sender=Member)
    try:
        member.save(update_fields=["views", "version"])
    finally:
        pre_save.disconnect(hear, sender=Member)
    assert told == [{"views"}]
    assert version_of(member) == 1


def test_deleted_row_is_a_conflict(member):
    Member.objects.all().delete()
    with transaction.atomic():
        with pytest.raises(StaleObject) as caught:
            member.save(update_fields=["views"])
        assert caught.value.deleted
        Member.objects.create(name="later")


def test_save_cas_always_compares(member):
    overtake(member)
    with pytest.raises(StaleObject):
        member.save_cas(update_fields=["views"])


def test_update_of_unversioned_fields_does_not_bump(member):
    Member.objects.update(views=F("views") + 1)
    Member.objects.filter(pk=member.pk).update(views=1, seen=None)
    member.views = 4
    Member.objects.bulk_update([member], ["views"])
    assert (version_of(member), Member.objects.get().views) == (1, 4)
    Member.objects.update(views=1, name="x")
    assert version_of(member) == 2


def test_bound_version_survives_an_unversioned_save(member):
    member.expect_version(1)
    member.save(update_fields=["views"])
    overtake(member)
    with pytest.raises(StaleObject):
        member.save()


def test_save_updates_the_original(member):
    member.views, member.name = 9, "mine"
    member.save(update_fields=["views"])
    overtake(member, name="theirs", views=10)
    with pytest.raises(StaleObject) as caught:
        member.save()
    diff = conflict_diff(caught.value)
    assert diff.fields["views"].original == 9
    assert [each.name for each in diff.conflicting] == ["name"]


def test_default_is_empty(product):
    assert Product.unversioned == ()
    product.save(update_fields=["name"])
    assert version_of(product) == 2


@pytest.mark.parametrize("fields", [["name"], ["watts"]])
def test_signals_name_the_version_where_it_is_written(fields):
    told = []

    def hear(update_fields, **_):
        told.append(update_fields)

    gadget = Gadget.objects.create(name="a")
    for signal in (pre_save, post_save):
        signal.connect(hear, sender=Gadget)
    try:
        gadget.save(update_fields=fields)
        gadget.save()
    finally:
        for signal in (pre_save, post_save):
            signal.disconnect(hear, sender=Gadget)
    assert told == [{*fields, "version"}, {*fields, "version"}, None, None]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("views",), []),
        ({"veiws", "name"}, ["dblock.E024"]),
        (("id",), ["dblock.E024"]),
        (("version",), ["dblock.E024"]),
        ("views", ["dblock.E024"]),
    ],
)
@isolate_apps("tests.app")
def test_check_refuses_wrong_names(names, found):
    class Counted(VersionedModel):
        unversioned = names
        name = models.CharField(max_length=9)
        views = models.IntegerField()

        class Meta:
            app_label = "app"

    messages = check_models([Counted._meta.apps.get_app_config("app")])
    assert [each.id for each in messages] == found
    assert all(isinstance(each, checks.Error) for each in messages)
