"""The admin writes and deletes only what its user has seen: two browsers, one row."""

import importlib
import inspect
import re
from contextlib import contextmanager

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import clear_url_caches

from django_dblock import StaleObject, StaleObjects, VersionedAdmin
from django_dblock.versioning.web.admin_forms import AdminForm
from tests.app import urls
from tests.app.models import Box, Coded, Plain, Product, Setting, Shelf
from tests.app.versioned_site import BoxInline, ShelfAdmin
from tests.versioning.pages import Page

pytestmark = pytest.mark.django_db

LIST = "/admin/app/shelf/"


@pytest.fixture(autouse=True)
def _media(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path


@pytest.fixture
def shelf():
    shelf = Shelf.objects.create(name="one", note="as it was")
    Box.objects.create(shelf=shelf, label="red", items=1)
    Box.objects.create(shelf=shelf, label="blue", items=2)
    return shelf


@pytest.fixture
def url(shelf):
    return f"{LIST}{shelf.pk}/change/"


@pytest.fixture
def mine():
    return browser("mine")


@pytest.fixture
def theirs():
    return browser("theirs")


def browser(name, **options):
    client = Client()
    client.force_login(User.objects.create_superuser(name))
    return client


def look(client, url):
    return Page(client.get(url))


def now(model, *fields):
    return list(model.objects.order_by("pk").values_list(*fields))


def logged():
    return LogEntry.objects.count()


def test_change_form_saves(mine, url):
    answer = mine.post(url, look(mine, url).sent(name="two"))
    assert answer.status_code == 302
    assert now(Shelf, "name", "version") == [("two", 2)]
    assert [str(each) for each in LogEntry.objects.all()] == ["Changed “two” — Changed Name."]


def test_second_browser_gets_the_conflict_page(mine, theirs, url):
    sent = look(mine, url).sent(name="my <name>", **{"boxes-0-items": "100"})
    theirs.post(url, look(theirs, url).sent(name="their name", note="new"))
    before = logged()
    answer = mine.post(url, sent)
    assert answer.status_code == 409
    page = Page(answer)
    for text in ("my &lt;name&gt;", "their name", "as it was", 'role="alert"', "<caption>"):
        assert text in page.text, text
    assert "my <name>" not in page.text
    assert now(Shelf, "name", "note") == [("their name", "new")]
    assert now(Box, "items") == [(1,), (2,)]
    assert logged() == before
    # What I changed stands in the form; what only they changed, too; sending is the decision.
    again = page.sent()
    assert (again["name"], again["note"]) == (["my <name>"], ["new"])
    assert mine.post(url, again).status_code == 302
    assert now(Shelf, "name", "note") == [("my <name>", "new")]
    assert now(Box, "items") == [(100,), (2,)]


def test_theirs_can_be_taken_field_by_field(mine, theirs, url):
    sent = look(mine, url).sent(name="mine", note="mine")
    theirs.post(url, look(theirs, url).sent(name="theirs", note="theirs"))
    page = Page(mine.post(url, sent))
    assert mine.post(url, page.sent(version_choice_name="theirs")).status_code == 302
    assert now(Shelf, "name", "note") == [("theirs", "mine")]
    assert "Changed Note." in str(LogEntry.objects.first())


def test_second_conflict_shows_the_newest(mine, theirs, url):
    sent = look(mine, url).sent(name="mine")
    theirs.post(url, look(theirs, url).sent(name="theirs"))
    page = Page(mine.post(url, sent))
    theirs.post(url, look(theirs, url).sent(name="newest"))
    answer = mine.post(url, page.sent(version_choice_name="theirs"))
    assert answer.status_code == 409
    assert "newest" in answer.content.decode()
    assert now(Shelf, "name") == [("newest",)]


@pytest.mark.parametrize("token", [None, "", "nonsense"])
def test_form_without_its_version_is_refused(mine, url, token):
    answer = mine.post(url, look(mine, url).sent(name="two", version_token=token))
    assert answer.status_code == 200
    assert "nothing was saved" in answer.content.decode()
    assert now(Shelf, "name", "version") == [("one", 1)]


def test_form_error_keeps_the_seen_version(mine, theirs, url):
    """Else the second attempt would overwrite what was never shown."""
    sent = look(mine, url).sent(name="")
    theirs.post(url, look(theirs, url).sent(name="theirs"))
    page = Page(mine.post(url, sent))
    assert mine.post(url, page.sent(name="mine")).status_code == 409
    assert now(Shelf, "name") == [("theirs",)]


def test_deleted_row_is_reported(mine, theirs, shelf, url):
    sent = look(mine, url).sent(name="two")
    Shelf.objects.all().delete()
    answer = mine.post(url, sent, follow=True)
    assert "Perhaps it was deleted?" in answer.content.decode()
    assert now(Shelf, "name") == []


class TestReplica:
    """The rows of a POST are read older than those that the page showed."""

    @pytest.fixture
    def read(self, monkeypatch):
        """What each request to the change form reads, in turn; then the present row."""
        turns = []

        def get_object(site, request, object_id, from_field=None):
            present = Shelf.objects.get(pk=object_id)
            return turns.pop(0) if turns and request.method == "POST" else present

        monkeypatch.setattr(ShelfAdmin, "get_object", get_object)
        monkeypatch.setattr(ShelfAdmin, "fields", ("name",), raising=False)
        return turns

    def test_trap_older_row_does_not_restore_columns_outside_the_form(self, mine, shelf, url, read):
        read.append(Shelf.objects.get())
        Shelf.objects.update(note="theirs")
        answer = mine.post(url, look(mine, url).sent(name="mine"))
        assert answer.status_code == 200
        assert "Send the page again" in answer.content.decode()
        assert now(Shelf, "name", "note") == [("one", "theirs")]
        assert mine.post(url, Page(answer).sent()).status_code == 302
        assert now(Shelf, "name", "note") == [("mine", "theirs")]

    def test_second_run_that_reads_an_older_row_asks_to_send_again(self, mine, shelf, url, read):
        oldest = Shelf.objects.get()
        Shelf.objects.update(note="shown")
        shown = look(mine, url).sent(name="mine")
        read += [Shelf.objects.get(), oldest]
        Shelf.objects.update(note="theirs")
        answer = mine.post(url, shown)
        assert answer.status_code == 409
        assert "Send the page again" in answer.content.decode()
        assert "this meanwhile" not in answer.content.decode()
        assert now(Shelf, "name", "note") == [("one", "theirs")]


# Inlines.


def test_inline_row_is_compared_by_itself(mine, theirs, url):
    sent = look(mine, url).sent(**{"boxes-0-items": "100"})
    Box.objects.filter(label="red").update(items=7)
    answer = mine.post(url, sent)
    assert answer.status_code == 409
    page = Page(answer)
    assert page.text.count("dblock-conflict-fields") == 1
    assert now(Box, "items") == [(7,), (2,)]
    assert now(Shelf, "version") == [(1,)]  # the parent was saved first, and rolled back
    assert logged() == 0
    assert mine.post(url, page.sent()).status_code == 302
    assert now(Box, "items") == [(100,), (2,)]


def test_unchanged_inline_row_is_no_conflict(mine, url):
    sent = look(mine, url).sent(**{"boxes-0-items": "100"})
    Box.objects.filter(label="blue").update(items=7)
    assert mine.post(url, sent).status_code == 302
    assert now(Box, "items") == [(100,), (7,)]


def test_changed_inline_row_is_not_deleted(mine, url):
    sent = look(mine, url).sent(**{"boxes-0-DELETE": "on"})
    Box.objects.filter(label="red").update(items=7)
    answer = mine.post(url, sent)
    assert answer.status_code == 409
    assert now(Box, "items") == [(7,), (2,)]
    assert mine.post(url, {**Page(answer).sent(), "boxes-0-DELETE": "on"}).status_code == 302
    assert now(Box, "items") == [(2,)]


def test_inline_row_without_version_is_not_deleted(mine, url):
    sent = look(mine, url).sent(without=["boxes-0-version_token"], **{"boxes-0-DELETE": "on"})
    answer = mine.post(url, sent)
    assert answer.status_code == 200
    assert "nothing was saved" in answer.content.decode()
    assert now(Box, "items") == [(1,), (2,)]


def test_deleted_inline_row_is_reported(mine, url):
    sent = look(mine, url).sent(**{"boxes-0-items": "100"})
    Box.objects.filter(label="red").delete()
    answer = mine.post(url, sent)
    assert "Somebody else has deleted this" in answer.content.decode()
    assert now(Shelf, "version") == [(1,)]


def test_inline_row_can_be_added(mine, url):
    sent = look(mine, url).sent(
        **{"boxes-TOTAL_FORMS": "3", "boxes-2-label": "green", "boxes-2-items": "3"},
        **{"boxes-2-shelf": "", "boxes-2-id": ""},
    )
    assert mine.post(url, sent).status_code == 302
    assert now(Box, "label", "version") == [("red", 1), ("blue", 1), ("green", 1)]


# The list.


@pytest.fixture
def second(shelf):
    return Shelf.objects.create(name="second")


def test_trap_list_editable_without_version_is_refused(mine, shelf, second):
    sent = look(mine, LIST).sent(without=["form-0-version_token"], **{"form-0-room": "a"})
    answer = mine.post(LIST, {**sent, "_save": "Save"})
    assert answer.status_code == 200
    assert "nothing was saved" in answer.content.decode()
    assert now(Shelf, "room", "version") == [("c", 1), ("c", 1)]


def test_list_editable_saves(mine, shelf, second):
    sent = look(mine, LIST).sent(**{"form-0-room": "a"})
    assert mine.post(LIST, {**sent, "_save": "Save"}).status_code == 302
    assert now(Shelf, "room", "version") == [("a", 2), ("c", 1)]


def test_changed_list_row_conflicts_and_no_row_is_written(mine, shelf, second):
    sent = look(mine, LIST).sent(**{"form-0-room": "a", "form-1-room": "a"})
    Shelf.objects.filter(pk=second.pk).update(name="theirs")
    answer = mine.post(LIST, {**sent, "_save": "Save"})
    assert answer.status_code == 409
    assert now(Shelf, "room") == [("c",), ("c",)]
    assert logged() == 0
    page = Page(answer)
    assert page.text.count("dblock-conflict-fields") == 1
    assert mine.post(LIST, {**page.sent(), "_save": "Save"}).status_code == 302
    assert now(Shelf, "name", "room") == [("one", "a"), ("theirs", "a")]
    assert logged() == 2


def test_unchanged_list_row_is_not_written(mine, shelf, second):
    """Django's own list would write the old value over theirs."""
    sent = look(mine, LIST).sent(**{"form-0-room": "a"})
    Shelf.objects.filter(pk=second.pk).update(open=False)
    assert mine.post(LIST, {**sent, "_save": "Save"}).status_code == 302
    assert now(Shelf, "room", "open") == [("a", True), ("c", False)]


def test_negative_twin_django_list_restores_an_old_value(mine, shelf):
    url = "/admin/app/box/"
    sent = look(mine, url).sent(**{"form-0-items": "100"})
    old = dict(Box.objects.values_list("label", "items"))
    assert old == {"red": 1, "blue": 2}
    Box.objects.update(items=7)
    mine.post(url, {**sent, "_save": "Save"})
    assert 7 not in dict(Box.objects.values_list("label", "items")).values()


def test_deleted_list_row_is_reported(mine, shelf, second):
    sent = look(mine, LIST).sent(**{"form-0-room": "a", "form-1-room": "a"})
    shelf.delete()
    answer = mine.post(LIST, {**sent, "_save": "Save"})
    assert "Somebody else has deleted this" in answer.content.decode()
    assert now(Shelf, "room") == [("c",)]


# Deleting.


@pytest.fixture
def delete_url(shelf):
    return f"{LIST}{shelf.pk}/delete/"


def test_unchanged_row_is_deleted(mine, delete_url):
    assert mine.post(delete_url, look(mine, delete_url).sent()).status_code == 302
    assert now(Shelf, "pk") == now(Box, "pk") == []
    assert logged() == 1


def test_changed_row_is_not_deleted(mine, delete_url):
    sent = look(mine, delete_url).sent()
    Shelf.objects.update(name="<theirs>")
    answer = mine.post(delete_url, sent)
    assert answer.status_code == 409
    assert "Nothing was deleted" in answer.content.decode()
    assert "<td>one</td><td>&lt;theirs&gt;</td>" in answer.content.decode()
    assert now(Shelf, "name") == [("<theirs>",)]
    assert logged() == 0
    assert mine.post(delete_url, Page(answer).sent()).status_code == 302
    assert now(Shelf, "pk") == []


def test_delete_without_version_is_refused(mine, delete_url):
    answer = mine.post(delete_url, {"post": "yes"})
    assert answer.status_code == 400
    assert "nothing was saved" in answer.content.decode()
    assert now(Shelf, "name") == [("one",)]
    assert logged() == 0


def selected(action, *objects, **more):
    return {"action": action, "_selected_action": [each.pk for each in objects], **more}


def test_delete_selected_deletes_unchanged_rows(mine, shelf, second):
    page = Page(mine.post(LIST, selected("delete_selected", shelf, second, index="0")))
    assert mine.post(LIST, page.sent()).status_code == 302
    assert now(Shelf, "pk") == []
    assert logged() == 2


def test_one_changed_row_stops_delete_selected(mine, shelf, second):
    page = Page(mine.post(LIST, selected("delete_selected", shelf, second, index="0")))
    Shelf.objects.filter(pk=second.pk).update(name="theirs")
    answer = mine.post(LIST, page.sent())
    assert answer.status_code == 409
    assert "nothing was done to it: theirs." in answer.content.decode()
    assert now(Shelf, "name") == [("one",), ("theirs",)]
    assert logged() == 0
    assert mine.post(LIST, Page(answer).sent()).status_code == 302
    assert now(Shelf, "pk") == []


@pytest.mark.parametrize("versions", [None, "nonsense"])
def test_delete_selected_without_versions_is_refused(mine, shelf, versions):
    page = Page(mine.post(LIST, selected("delete_selected", shelf, index="0")))
    assert mine.post(LIST, page.sent(version_tokens=versions)).status_code == 400
    assert now(Shelf, "name") == [("one",)]


@pytest.mark.django_db(databases=["default", "other"])
def test_delete_selected_compares_on_the_querysets_alias(mine, monkeypatch):
    """An admin of another database, as Django's documentation makes one."""
    monkeypatch.setattr(ShelfAdmin, "get_queryset", lambda *_: Shelf.objects.using("other"))
    shelf = Shelf.objects.using("other").create(name="one")
    page = Page(mine.post(LIST, selected("delete_selected", shelf, index="0")))
    Shelf.objects.using("other").update(name="theirs")
    answer = mine.post(LIST, page.sent())
    assert answer.status_code == 409
    assert "nothing was done to it: theirs." in answer.content.decode()
    assert Shelf.objects.using("other").exists()
    assert mine.post(LIST, Page(answer).sent()).status_code == 302
    assert not Shelf.objects.using("other").exists()


@pytest.mark.django_db(databases=["default", "other"])
def test_conflict_of_an_inline_rolls_back_the_querysets_alias(mine, monkeypatch):
    """Django's transaction is of the router's alias, where an admin like this writes nothing."""
    monkeypatch.setattr(ShelfAdmin, "inlines", (BoxInline,))
    for where in (ShelfAdmin, BoxInline):
        monkeypatch.setattr(
            where, "get_queryset", lambda self, _: self.model.objects.using("other"), raising=False
        )
    shelf = Shelf.objects.using("other").create(name="one")
    Box.objects.using("other").create(shelf=shelf, label="red")
    url = f"{LIST}{shelf.pk}/change/"
    sent = look(mine, url).sent(**{"name": "mine", "boxes-0-items": "5"})
    Box.objects.using("other").update(label="theirs")
    assert mine.post(url, sent).status_code == 409
    found = Shelf.objects.using("other").values_list("name", "room", "version")
    assert list(found) == [("one", "c", 1)]
    second = Shelf.objects.using("other").create(name="two")
    rooms = {f"form-{at}-room": "a" for at in (0, 1)}
    sent = look(mine, LIST).sent(**rooms, _save="Save")
    Shelf.objects.using("other").filter(pk=second.pk).update(note="theirs")
    assert mine.post(LIST, sent).status_code == 409
    assert list(found.all()) == [("one", "c", 1), ("two", "c", 2)]


@pytest.mark.django_db(databases=["default", "other"])
def test_conflict_in_an_action_rolls_back_its_log_on_the_routers_alias(mine, monkeypatch):
    def close(self, request, queryset):
        if not request.POST.get("post"):
            return HttpResponse("Sure?")
        self.log_change(request, queryset.get(), "closed")
        raise overtaken(queryset.get())

    monkeypatch.setattr(ShelfAdmin, "get_queryset", lambda *_: Shelf.objects.using("other"))
    monkeypatch.setattr(ShelfAdmin, "close", admin.action(close))
    shelf = Shelf.objects.using("other").create(name="one")
    answer = mine.post(LIST, selected("close", shelf, index="0", post="yes"))
    assert answer.content == b"Sure?"
    assert logged() == 0


@pytest.mark.django_db(databases=["default", "other"])
def test_conflict_of_a_delete_rolls_back_the_querysets_alias(mine, monkeypatch):
    def delete_model(self, request, obj):
        Shelf.objects.using("other").create(name="archived")
        obj.delete()

    monkeypatch.setattr(ShelfAdmin, "get_queryset", lambda *_: Shelf.objects.using("other"))
    monkeypatch.setattr(ShelfAdmin, "delete_model", delete_model)
    shelf = Shelf.objects.using("other").create(name="one")
    url = f"{LIST}{shelf.pk}/delete/"
    sent = look(mine, url).sent()
    Shelf.objects.using("other").update(name="theirs")
    assert mine.post(url, sent).status_code == 409
    assert list(Shelf.objects.using("other").values_list("name")) == [("theirs",)]


def test_unshown_row_is_not_deleted(mine, shelf, second):
    page = Page(mine.post(LIST, selected("delete_selected", shelf, index="0")))
    sent = page.sent(_selected_action=[shelf.pk, second.pk])
    assert mine.post(LIST, sent).status_code == 409
    assert now(Shelf, "name") == [("one",), ("second",)]


def test_custom_action_works(mine, shelf):
    assert mine.post(LIST, selected("close", shelf, index="0")).status_code == 302
    assert now(Shelf, "open") == [(False,)]


# What else the admin can do.


def test_row_can_be_added(mine):
    url = f"{LIST}add/"
    assert mine.post(url, look(mine, url).sent(name="new")).status_code == 302
    assert now(Shelf, "name", "version") == [("new", 1)]


def test_save_as_new_needs_no_version(mine, url):
    Shelf.objects.update(note="theirs")
    sent = look(mine, url).sent(name="copy", _saveasnew="1")
    assert mine.post(url, sent).status_code == 302
    assert now(Shelf, "name", "version") == [("one", 2), ("copy", 1)]
    assert Box.objects.count() == 4


def test_popup_shows_a_conflict_and_then_closes(mine, shelf, url):
    sent = look(mine, f"{url}?_popup=1").sent(name="mine")
    Shelf.objects.update(name="theirs")
    answer = mine.post(f"{url}?_popup=1", sent)
    assert answer.status_code == 409
    answer = mine.post(f"{url}?_popup=1", Page(answer).sent())
    assert answer.status_code == 200
    assert b"data-popup-response" in answer.content
    assert now(Shelf, "name") == [("mine",)]


def test_view_permission_alone_shows_no_version(shelf, url):
    user = User.objects.create_user("looker", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_shelf"))
    client = Client()
    client.force_login(user)
    answer = client.get(url)
    assert answer.status_code == 200
    assert b"version_token" not in answer.content
    assert client.post(url, {"name": "x"}).status_code == 403
    assert client.get(LIST).status_code == 200


def test_last_write_wins_model_is_compared_in_form_and_list(mine):
    setting = Setting.objects.create(name="a", value="b")
    url, rows = f"/admin/app/setting/{setting.pk}/change/", "/admin/app/setting/"
    sent, listed = (
        look(mine, url).sent(value="mine"),
        look(mine, rows).sent(**{"form-0-value": "m"}),
    )
    Setting.objects.update(value="theirs")
    assert mine.post(url, sent).status_code == 409
    assert mine.post(rows, {**listed, "_save": "Save"}).status_code == 409
    assert now(Setting, "value") == [("theirs",)]


def test_admin_of_an_unversioned_model_works(mine):
    plain = Plain.objects.create(name="a")
    url, rows = f"/admin/app/plain/{plain.pk}/", "/admin/app/plain/"
    page = look(mine, f"{url}change/")
    assert "version_token" not in page.text
    assert mine.post(f"{url}change/", page.sent(name="b")).status_code == 302
    sent = look(mine, rows).sent(**{"form-0-name": "c"})
    assert mine.post(rows, {**sent, "_save": "Save"}).status_code == 302
    assert now(Plain, "name") == [("c",)]
    page = Page(mine.post(rows, selected("delete_selected", plain, index="0")))
    assert mine.post(rows, page.sent()).status_code == 302
    plain.save()
    assert mine.post(f"{url}delete/", look(mine, f"{url}delete/").sent()).status_code == 302
    assert now(Plain, "name") == []


def test_admin_without_fieldsets_carries_the_version(mine):
    product = Product.objects.create(name="a")
    url = f"/admin/app/product/{product.pk}/change/"
    assert "version_token" in dict(look(mine, url).fields)
    assert mine.post(url, look(mine, url).sent()).status_code == 302
    assert now(Product, "version") == [(2,)]


def test_delete_permission_alone_shows_no_values(shelf, delete_url):
    user = User.objects.create_user("remover", is_staff=True)
    codes = ("delete_shelf", "delete_box")
    user.user_permissions.set(Permission.objects.filter(codename__in=codes))
    client = Client()
    client.force_login(user)
    sent = look(client, delete_url).sent()
    Shelf.objects.update(name="theirs")
    answer = client.post(delete_url, sent)
    assert answer.status_code == 409
    assert "Changed since you opened it" not in answer.content.decode()


def overtaken(row):
    return StaleObject(instance=row, expected=1, actual=2, using="default")


def test_conflict_in_an_action_is_a_message(mine, shelf, monkeypatch):
    def save(self, *args, **options):
        raise overtaken(self)

    monkeypatch.setattr(Shelf, "save", save)
    answer = mine.post(LIST, selected("close", shelf, index="0"), follow=True)
    assert "nothing was done to it: one." in answer.content.decode()


def test_confirming_action_can_check_versions(mine, shelf, second, monkeypatch):
    def rename(self, request, queryset):
        if not request.POST.get("post"):
            return HttpResponse(f"<form>{self.carry_versions(queryset)}</form>")
        self.check_versions(request, queryset)
        queryset.update(name="renamed")
        return None

    monkeypatch.setattr(ShelfAdmin, "close", admin.action(rename))
    page = Page(mine.post(LIST, selected("close", shelf, second, index="0")))
    sent = {**page.sent(), **selected("close", shelf, second, post="yes")}
    Shelf.objects.filter(pk=second.pk).update(name="theirs")
    answer = mine.post(LIST, sent)
    assert now(Shelf, "name") == [("one",), ("theirs",)]
    sent = {**Page(answer).sent(), **selected("close", shelf, second, post="yes")}
    assert mine.post(LIST, sent).status_code == 302
    assert now(Shelf, "name") == [("renamed",), ("renamed",)]


@pytest.fixture
def in_change_form(monkeypatch):
    """Put the action "close" into the change form: Django 6.1; before that, the same call."""
    where = {}
    if hasattr(admin, "ActionLocation"):
        where = {"location": list(admin.ActionLocation)}
    else:
        monkeypatch.setattr(
            ShelfAdmin,
            "_changeform_view",
            lambda self, request, *_: self.response_action(request, self.get_queryset(request)),
        )

    def put(action):
        monkeypatch.setattr(ShelfAdmin, "close", admin.action(action, **where))

    return put


def test_action_of_the_change_form_shows_its_page_again(mine, shelf, url, in_change_form):
    def rename(self, request, queryset):
        if not request.POST.get("post"):
            return HttpResponse(f"<form>{self.carry_versions(queryset)}</form>")
        self.check_versions(request, queryset)
        queryset.update(name="renamed")
        return None

    in_change_form(rename)
    sent = {**selected("close", shelf), "CHANGE_FORM-action": "close"}
    page = Page(mine.post(url, sent))
    Shelf.objects.update(name="theirs")
    answer = mine.post(url, {**page.sent(), **sent, "post": "yes"})
    assert now(Shelf, "name") == [("theirs",)]
    assert mine.post(url, {**Page(answer).sent(), **sent, "post": "yes"}).status_code == 302
    assert now(Shelf, "name") == [("renamed",)]


def test_conflict_in_an_action_of_the_change_form_is_a_message(mine, shelf, url, in_change_form):
    def close(self, request, queryset):
        raise overtaken(shelf)

    in_change_form(close)
    sent = {**selected("close", shelf), "CHANGE_FORM-action": "close"}
    assert mine.post(url, sent).status_code == 302
    answer = mine.get(LIST)
    assert "nothing was done to it: one." in answer.content.decode()


def test_rows_with_their_version_under_another_key_are_checked(rf):
    """Coded has its version in the table of its second parent, under another key than its own."""
    first, second = (Coded.objects.create(code=code) for code in "xy")
    model_admin = VersionedAdmin(Coded, admin.site)
    page = re.search('value="([^"]+)"', model_admin.carry_versions([first, second]))
    request = rf.post("/", {"version_tokens": page[1]})
    model_admin.check_versions(request, Coded.objects.all())
    Coded.objects.filter(pk=second.pk).update(text="theirs")
    with pytest.raises(StaleObjects) as caught:
        model_admin.check_versions(request, Coded.objects.all())
    assert caught.value.pks == [second.pk]


@pytest.mark.parametrize("error", [overtaken(Shelf(pk=9)), ValidationError("no")])
def test_other_errors_propagate(mine, shelf, url, delete_url, monkeypatch, error):
    def fail(self, *args, **options):
        raise error

    monkeypatch.setattr(ShelfAdmin, "save_model", fail)
    monkeypatch.setattr(ShelfAdmin, "delete_model", fail)
    for each in (url, delete_url):
        with pytest.raises(type(error)):
            mine.post(each, look(mine, each).sent())
    if isinstance(error, ValidationError):
        monkeypatch.setattr(ShelfAdmin, "close", fail)
        with pytest.raises(ValidationError):
            mine.post(LIST, selected("close", shelf, index="0"))


def test_row_changed_during_the_save_is_a_conflict(mine, shelf, url, monkeypatch):
    """The other write is in the same transaction here, so the conflict rolls it back."""
    sent = look(mine, url).sent(name="mine")

    def save_model(self, request, obj, form, change):
        Shelf.objects.filter(pk=obj.pk).update(name="theirs")
        obj.save()

    monkeypatch.setattr(ShelfAdmin, "save_model", save_model)
    answer = mine.post(url, sent)
    assert answer.status_code == 409
    assert now(Shelf, "name") == [("one",)]  # theirs was in the same transaction here


def test_repeatedly_conflicting_page_raises(mine, shelf, url, monkeypatch):
    sent = look(mine, url).sent(name="mine")
    monkeypatch.setattr(AdminForm, "_is_stale", lambda *_: False)
    Shelf.objects.update(name="theirs")
    with pytest.raises(StaleObject):
        mine.post(url, sent)


@pytest.mark.django_db(transaction=True)
def test_row_deleted_after_the_read_is_reported(mine, url, rival, monkeypatch):
    sent = look(mine, url).sent(name="mine")

    def save_model(self, request, obj, form, change):
        rival.execute("DELETE FROM app_box")
        rival.execute("DELETE FROM app_shelf")
        obj.save()

    monkeypatch.setattr(ShelfAdmin, "save_model", save_model)
    answer = mine.post(url, sent, follow=True)
    assert "Perhaps it was deleted?" in answer.content.decode()


# What it costs, and what it leans on.


def test_admin_adds_a_statement_to_a_cascading_delete_only(mine, shelf, statements):
    """``delete_cas()`` locks a row first if other rows are deleted with that row."""

    class Ours(VersionedAdmin):
        list_display, list_editable, inlines = ("name", "room"), ("room",), (BoxInline,)

    class Theirs(admin.ModelAdmin):
        list_display, list_editable, inlines = ("name", "room"), ("room",), (BoxInline,)

    def count(kind):
        ContentType.objects.clear_cache()
        with transaction.atomic():
            found = steps(kind)
            transaction.set_rollback(True)
        return found

    def steps(kind):
        with registered(kind):
            found = []

            def sent(*args, **options):
                with statements() as queries:
                    answer = mine.post(*args, **options) if args[1:] else mine.get(*args)
                assert answer.status_code in (200, 302), answer.content
                found.append(len([q for q in queries if "SAVEPOINT" not in q["sql"]]))
                return answer

            page = f"{LIST}{shelf.pk}/change/"
            sent(page, Page(sent(page)).sent(name="n", **{"boxes-0-items": "5"}))
            sent(LIST, {**Page(sent(LIST)).sent(**{"form-0-room": "a"}), "_save": "Save"})
            page = f"{LIST}{shelf.pk}/delete/"
            sent(page, Page(sent(page)).sent())
            return found

    *ours, our_delete = count(Ours)
    *theirs, their_delete = count(Theirs)
    assert ours == theirs
    assert our_delete == their_delete + 1


@contextmanager
def registered(kind):
    """Let the site have this admin for shelves."""

    def register(each):
        admin.site.unregister(Shelf)
        admin.site.register(Shelf, each)
        importlib.reload(urls)
        clear_url_caches()

    register(kind)
    try:
        yield
    finally:
        register(ShelfAdmin)


def test_trap_no_django_method_is_copied():
    """Each override calls the method that it overrides."""
    for name, method in vars(VersionedAdmin).items():
        if hasattr(admin.ModelAdmin, name) and inspect.isfunction(method):
            assert "super()" in inspect.getsource(method), name
