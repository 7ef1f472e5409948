"""Views outside the admin: two browsers edit one row; many processes post one form."""

from collections import Counter

import pytest
from django.http import HttpRequest
from django.test import Client

from django_dblock import VersionedUpdateMixin, form_conflict_response
from tests.app.models import Box, Plain, Shelf, Tag
from tests.app.versioned_site import ShelfUpdate
from tests.helpers.processes import race
from tests.versioning.conftest import Replica
from tests.versioning.pages import Page

pytestmark = [pytest.mark.django_db, pytest.mark.loss]

PAGES = ["", "function/"]


@pytest.fixture(autouse=True)
def _media(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path


@pytest.fixture
def shelf(db):
    shelf = Shelf.objects.create(name="one", note="as it was")
    Box.objects.create(shelf=shelf, label="red", items=1)
    return shelf


def look(url, client=None):
    return Page((client or Client()).get(url))


def names():
    return list(Shelf.objects.values_list("name", "note"))


@pytest.mark.parametrize("page", PAGES)
def test_second_browser_gets_the_conflict_page(shelf, page, client):
    url = f"/shelf/{shelf.pk}/{page}"
    mine, theirs = look(url), look(url)
    assert Client().post(url, theirs.sent(name="<theirs>", note="new")).status_code == 302
    answer = client.post(url, mine.sent(name="<mine>"))
    assert answer.status_code == 409
    assert names() == [("<theirs>", "new")]
    shown = Page(answer)
    for text in ('role="alert"', "<caption>", 'scope="row"', 'scope="col"', "as it was", "&lt;"):
        assert text in shown.text
    for text in ("<script", "<style", " style=", "<mine>", "<theirs>"):
        assert text not in shown.text
    assert client.post(url, shown.sent()).status_code == 302
    assert names() == [("<mine>", "new")]


@pytest.mark.parametrize("page", PAGES)
def test_theirs_can_be_chosen(shelf, page, client):
    url = f"/shelf/{shelf.pk}/{page}"
    mine = look(url)
    Shelf.objects.update(name="theirs")
    shown = Page(client.post(url, mine.sent(name="mine", note="mine")))
    assert client.post(url, shown.sent(version_choice_name="theirs")).status_code == 302
    assert names() == [("theirs", "mine")]


@pytest.mark.parametrize("page", PAGES)
def test_form_without_its_version_is_shown_again(shelf, page, client):
    url = f"/shelf/{shelf.pk}/{page}"
    answer = client.post(url, look(url).sent(name="mine", version_token=None))
    assert answer.status_code == 200
    assert "nothing was saved" in answer.content.decode()
    assert names() == [("one", "as it was")]


def test_row_deleted_before_the_read_shows_the_input(shelf, client):
    url = f"/shelf/{shelf.pk}/"
    mine = look(url)
    shelf.delete()
    answer = client.post(url, mine.sent(name="<mine>"))
    assert answer.status_code == 409
    assert "has deleted this" in answer.content.decode()
    assert "<dd>&lt;mine&gt;</dd>" in answer.content.decode()
    assert client.post(url, {"name": "x"}).status_code == 404


def test_row_deleted_before_the_update_shows_the_input(shelf, client, monkeypatch):
    url = f"/shelf/{shelf.pk}/function/"
    mine = look(url)
    from tests.app.versioned_site import ShelfForm

    save = ShelfForm.save

    def slow(form, *args):
        Shelf.objects.all().delete()
        return save(form, *args)

    monkeypatch.setattr(ShelfForm, "save", slow)
    answer = client.post(url, mine.sent(name="mine"))
    assert answer.status_code == 409
    assert "has deleted this" in answer.content.decode()
    assert "Theirs" not in answer.content.decode()
    assert "<form" not in answer.content.decode()


def test_formset_of_a_function_view_conflicts(shelf, client):
    url = f"/shelf/{shelf.pk}/boxes/"
    mine = look(url)
    Box.objects.update(items=7)
    answer = client.post(url, mine.sent(**{"boxes-0-items": "100"}))
    assert answer.status_code == 409
    assert client.post(url, Page(answer).sent()).status_code == 302
    assert Box.objects.get().items == 100


def test_delete_view_deletes_an_unchanged_row(shelf, client):
    url = f"/shelf/{shelf.pk}/delete/"
    assert client.post(url, look(url).sent()).status_code == 302
    assert not Shelf.objects.exists()


def test_delete_view_keeps_a_changed_row(shelf, client):
    url = f"/shelf/{shelf.pk}/delete/"
    mine = look(url)
    Shelf.objects.update(name="theirs")
    answer = client.post(url, mine.sent())
    assert answer.status_code == 409
    assert "Nothing was deleted" in answer.content.decode()
    assert Shelf.objects.exists()
    assert client.post(url, Page(answer).sent()).status_code == 302
    assert not Shelf.objects.exists()


def test_delete_view_needs_the_version(shelf, client):
    url = f"/shelf/{shelf.pk}/delete/"
    answer = client.post(url, {})
    assert answer.status_code == 200
    assert "nothing was saved" in answer.content.decode()
    assert Shelf.objects.exists()
    assert client.post(url, Page(answer).sent()).status_code == 302


def test_versioned_form_class_is_kept():
    from tests.app.versioned_site import ShelfForm

    view = ShelfUpdate()
    view.fields, view.form_class = None, ShelfForm
    assert view.get_form_class() is ShelfForm


def test_conflict_of_another_row_propagates(shelf, rf):
    from django_dblock import StaleObject
    from tests.app.versioned_site import ShelfForm

    error = StaleObject(instance=Shelf(pk=9), expected=1, actual=2, using="default")
    with pytest.raises(StaleObject):
        form_conflict_response(HttpRequest(), ShelfForm(instance=shelf), error)


def test_delete_view_passes_on_another_rows_conflict(shelf, client, monkeypatch):
    from django_dblock import StaleObject

    def delete(self, using=None, **_):
        raise StaleObject(instance=Shelf(pk=9), expected=1, actual=2, using="default")

    url = f"/shelf/{shelf.pk}/delete/"
    page = look(url)
    monkeypatch.setattr(Shelf, "delete", delete)
    with pytest.raises(StaleObject):
        client.post(url, page.sent())


@pytest.mark.django_db(transaction=True)
def test_atomic_requests_is_rolled_back(shelf, client, monkeypatch):
    from django.db import connection

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    save = VersionedUpdateMixin.get_form

    def note(view, *args):
        form = save(view, *args)
        if view.request.method == "POST":
            Tag.objects.create(name="written by the view")
        return form

    monkeypatch.setattr(ShelfUpdate, "get_form", note)
    url = f"/shelf/{shelf.pk}/"
    mine = look(url)
    Shelf.objects.update(name="theirs")
    assert client.post(url, mine.sent(name="mine")).status_code == 409
    assert not Tag.objects.exists()
    assert client.post(url, look(url).sent(name="mine")).status_code == 302
    assert Tag.objects.count() == 1


# At once.


def send(number, url, data, field="note"):
    return Client().post(url, {**data, field: f"{number}"}).status_code


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
@pytest.mark.parametrize("page", PAGES)
def test_one_of_many_concurrent_posts_wins(shelf, page):
    url = f"/shelf/{shelf.pk}/{page}"
    statuses = race(8, send, url, look(url).sent())
    assert Counter(statuses) == {302: 1, 409: 7}
    assert Shelf.objects.get().version == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
def test_negative_twin_plain_form_loses_edits():
    row = Plain.objects.create(name="one")
    statuses = race(4, send, f"/plain/{row.pk}/", {}, "name")
    assert Counter(statuses) == {302: 4}


@pytest.mark.django_db(databases=["default", "other"])
@pytest.mark.parametrize("page", PAGES)
def test_trap_replica_that_lags_after_a_conflict_loses_no_change(client, settings, page):
    """The trap: the page of the conflict has read the primary, the next view reads the replica."""
    shelf = Shelf.objects.create(name="one")
    Shelf.objects.using("other").create(pk=shelf.pk, name="one")
    settings.DATABASE_ROUTERS = [Replica()]
    rows = Shelf.objects.using("default").filter(pk=shelf.pk)
    url = f"/shelf/{shelf.pk}/{page}"
    shown = look(url)
    rows.update(secret="theirs")
    answer = client.post(url, shown.sent(name="mine"))
    assert answer.status_code == 409
    answer = client.post(url, Page(answer).sent())
    assert answer.status_code == 200
    assert "Send the page again" in answer.content.decode()
    assert rows.values_list("name", "secret", "version").get() == ("one", "theirs", 2)
    Shelf.objects.using("other").filter(pk=shelf.pk).update(secret="theirs")  # it has caught up
    assert client.post(url, Page(answer).sent()).status_code == 302
    assert rows.values_list("name", "secret", "version").get() == ("mine", "theirs", 3)
