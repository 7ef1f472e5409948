"""django-nested-admin: rows of rows of rows overwrite nothing that their editor has not seen."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

pytest.importorskip("nested_admin")

from tests.stacks.nested.models import Aisle, Bay, Store
from tests.versioning.pages import Page

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser():
    client = Client()
    client.force_login(User.objects.create_superuser("mine"))
    return client


@pytest.fixture
def url():
    bay = Bay.objects.create(
        aisle=Aisle.objects.create(store=Store.objects.create(name="s"), label="l"), goods="old"
    )
    return f"/admin/nested/store/{bay.aisle.store_id}/change/"


FIELD = "aisles-0-bays-0-goods"


def test_inline_of_an_inline_is_saved(browser, url):
    page = Page(browser.get(url))
    assert browser.post(url, page.sent(**{FIELD: "mine"})).status_code == 302
    assert Bay.objects.values_list("goods", "version").get() == ("mine", 2)


def test_inline_of_an_inline_that_somebody_changed_is_a_conflict(browser, url):
    page = Page(browser.get(url))
    Bay.objects.update(goods="theirs")
    response = browser.post(url, page.sent(**{FIELD: "mine"}))
    assert response.status_code == 409
    assert Bay.objects.get().goods == "theirs"
    assert "nothing was saved" in response.content.decode()
    again = Page(response)
    answer = browser.post(url, again.sent(**{FIELD: "mine"}))
    shown = "dblock-conflict-fields" in again.text
    assert (answer.status_code, Bay.objects.get().goods) == (
        (302, "mine") if shown else (409, "theirs")
    )
