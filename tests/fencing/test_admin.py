"""The admin shows the leases, and writes none."""

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import path

from django_dblock import FencedLock, fenced_lock
from django_dblock import admin as leases
from tests.monitor import scene

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/django_dblock/fencedlock/"


@pytest.fixture
def root(db):
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def rows(observer):
    """One in each state."""
    scene.lease(observer, "held")
    scene.lease(observer, "delayed", left=-5, delay=60)
    scene.lease(observer, "expired", left=-5, owner="web-9:1:Main")


def listed(client, **query):
    answer = client.get(LIST, query)
    assert answer.status_code == 200
    return {row.name for row in answer.context["cl"].result_list}


def test_list_shows_all_leases(root, rows):
    assert listed(root) == {"held", "delayed", "expired"}


@pytest.mark.parametrize("state", ["held", "delayed", "expired"])
def test_state_filter_selects_leases_in_that_state(state, root, rows):
    assert listed(root, state=state) == {state}


def test_unknown_state_filters_nothing(root, rows):
    assert len(listed(root, state="lost")) == 3


@pytest.mark.parametrize(("text", "found"), [("layed", {"delayed"}), ("web-9", {"expired"})])
def test_search_finds_part_of_a_name_or_owner(text, found, root, rows):
    assert listed(root, q=text) == found


def test_search_with_a_filter_finds_a_row_behind_many_others(root, observer, monkeypatch):
    monkeypatch.setattr(leases, "MOST_FOUND", 2)
    scene.lease(observer, "sync:9")
    for number in range(4):
        scene.lease(observer, f"sync:{number}", left=-5)
    assert listed(root, q="sync", state="held") == {"sync:9"}


def test_admin_is_read_only(root, rows):
    row = FencedLock.objects.get(name="held")
    assert root.get(f"{LIST}{row.pk}/change/").status_code == 200
    assert root.get(f"{LIST}add/").status_code == 403
    assert root.post(f"{LIST}{row.pk}/change/", {"owner": "x"}).status_code == 403
    assert root.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    root.post(LIST, {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"})
    assert FencedLock.objects.count() == 3


def test_number_of_queries_is_constant(root, rows, observer, statements):
    root.get(LIST)
    with statements() as few:
        root.get(LIST)
    for number in range(50):
        scene.lease(observer, f"more-{number}")
    with statements() as many:
        root.get(LIST)
    assert len(few) == len(many) == 4, "session, user, count, rows"


class TestRelease:
    def act(self, client):
        pks = FencedLock.objects.filter(name__in=["nightly", "a&b"]).values_list("pk", flat=True)
        return client.post(LIST, {"action": "release_leases", "_selected_action": list(pks)})

    def test_action_leads_to_the_confirmation(self, root, observer):
        scene.lease(observer, "a&b")
        with fenced_lock("nightly", ttl=60) as lock:
            answer = self.act(root)
            assert answer["Location"] == (
                "/admin/django_dblock/lockmonitor/release/?lease=0%3Aa%26b&lease=0%3Anightly"
            )
            page = root.get(answer["Location"]).content.decode()
            assert page.count('name="grant"') == 2
            lock.check()

    @pytest.mark.parametrize(
        "may", [("view_fencedlock",), ("view_fencedlock", "release_fencedlock")], ids=len
    )
    def test_action_is_hidden_without_permission(self, may, client):
        user = User.objects.create_user("ann", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=may))
        client.force_login(user)
        page = client.get(LIST).content.decode()
        assert "release_leases" not in page

    def test_action_is_offered_with_permission(self, client, observer):
        may = ("view_fencedlock", "release_fencedlock", "view_lockmonitor")
        user = User.objects.create_user("ann", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=may))
        client.force_login(user)
        scene.lease(observer, "nightly")
        assert "release_leases" in client.get(LIST).content.decode()
        assert self.act(client).status_code == 302


class TestManyLeases:
    def act(self, client, names, observer):
        for name in names:
            scene.lease(observer, name)
        chosen = {
            "action": "release_leases",
            "_selected_action": [0],
            "select_across": 1,
            "index": 0,
        }
        answer = client.post(LIST, chosen)
        return answer, [str(each) for each in answer.wsgi_request._messages]

    @pytest.mark.parametrize(
        "names",
        [[f"n{number}" for number in range(100)], ["\U0001d518" * 255]],
        ids=["100", "the longest name"],
    )
    def test_largest_number_of_leases_is_accepted(self, names, root, observer):
        answer, said = self.act(root, names, observer)
        assert said == []
        page = root.get(answer["Location"]).content.decode()
        assert page.count('name="grant"') == len(names)
        line = f"GET {answer['Location']} HTTP/1.1"
        assert len(line) <= 4094, "what gunicorn takes, if nothing else is set"

    @pytest.mark.parametrize(
        "names",
        [[f"n{number}" for number in range(101)], [f"{number}" + "é" * 250 for number in range(3)]],
        ids=["101", "three long ones"],
    )
    def test_too_many_leases_are_refused_with_a_message(self, names, root, observer):
        answer, said = self.act(root, names, observer)
        assert said == ["Nothing was done: choose at most 100 leases; fewer, if names are long."]
        assert answer["Location"] == LIST
        assert root.get(LIST).status_code == 200


class OwnSite(admin.AdminSite):
    """A project's, which lists the leases, and has no lock monitor."""


own_site = OwnSite(name="own")
own_site.register(FencedLock, leases.FencedLockAdmin)
urlpatterns = [path("own/", own_site.urls)]


@pytest.mark.urls(__name__)
def test_action_is_hidden_without_the_monitor(root, rows):
    address = "/own/django_dblock/fencedlock/"
    page = root.get(address).content.decode()
    assert "worker-1:812:MainThread" in page
    assert "release_leases" not in page
    pk = FencedLock.objects.get(name="held").pk
    chosen = {"action": "release_leases", "_selected_action": [pk]}
    assert root.post(address, chosen, follow=True).status_code == 200


def test_admin_is_registered_by_autodiscover():
    assert admin.site.is_registered(FencedLock)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_list_and_release_use_dblock_database(root, rows, connect, settings):
    scene.lease(connect("other"), "there")
    settings.DBLOCK_DATABASE = "other"
    assert listed(root) == {"there"}
    there = FencedLock.objects.using("other").get()
    assert root.get(f"{LIST}{there.pk}/change/").status_code == 200
    act = {"action": "release_leases", "_selected_action": [there.pk]}
    asked = root.post(LIST, act, follow=True)
    assert 'name="grant" value="0:' in asked.content.decode()
