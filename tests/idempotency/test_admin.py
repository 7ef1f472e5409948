"""The admin shows the requests, and writes none."""

import subprocess
import sys

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import translation

from django_dblock import IdempotencyKey
from django_dblock.admin import BoundedPaginator
from tests.helpers.plans import rows_read
from tests.idempotency.rows import abandoned, make, over, unfinished, values

pytestmark = pytest.mark.django_db

LIST = "/admin/django_dblock/idempotencykey/"


@pytest.fixture
def browser(db):
    """Somebody who may do everything."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def rows():
    """One in each state."""
    return {
        "done": make("done-key"),
        "leased": unfinished("leased-key", expires_at=over()),
        "expired": abandoned("expired-key", expires_at=over()),
        "free": unfinished("free-key", locked_until=None),
        "abandoned": abandoned("abandoned-key", expires_at=None),
    }


def listed(browser, **query):
    page = browser.get(LIST, query)
    assert page.status_code == 200
    return [row.key for row in page.context["cl"].result_list]


class TestList:
    def test_each_request_has_its_state(self, browser, rows):
        page = browser.get(LIST)
        found = {row.key: row.state_now for row in page.context["cl"].result_list}
        assert found == {f"{state}-key": state for state in rows}

    def test_state_names_are_translated(self, browser, rows, monkeypatch):
        monkeypatch.setattr(translation._trans, "gettext", lambda message: f"~{message}~")
        page = browser.get(LIST)
        html = page.content.decode()
        for word in ("key", "state", "time left"):
            assert f"~{word}~" in html
        assert all(html.count(f"~{state}~") == 2 for state in rows), "in the row and the filter"
        assert "~status of the newest requests~" in html
        html = browser.get(f"{LIST}{IdempotencyKey.objects.earliest('pk').pk}/change/").content
        for word in ("body", "14 bytes", "steps", "none"):
            assert f"~{word}~" in html.decode()

    def test_keys_are_masked_and_bodies_absent(self, browser, rows):
        html = browser.get(LIST).content.decode()
        assert "abando…" in html
        assert "abandoned-key" not in html
        assert "paid" not in html
        assert "/pay/" in html

    @pytest.mark.parametrize("state", ["done", "leased", "expired", "free", "abandoned"])
    def test_state_filter(self, state, browser, rows):
        assert listed(browser, state=state) == [f"{state}-key"]

    def test_completed_request_past_retention_is_expired(self, browser):
        make("over-key", expires_at=over())
        assert listed(browser, state="expired") == ["over-key"]
        assert listed(browser, state="done") == []

    def test_status_filter(self, browser, rows):
        make("failed-key", status_code=422)
        assert listed(browser, status="4") == ["failed-key"]
        assert listed(browser, status="2") == ["done-key"]
        assert listed(browser, status="5") == []

    def test_unknown_filter_filters_nothing(self, browser, rows):
        assert len(listed(browser, state="lost", status="9")) == 5

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("scope:shop", ["other-key"]),
            ("/refund/", ["other-key"]),
            ("done-key", ["done-key"]),
            ("done-ke", []),
            ("DONE-KEY", []),
        ],
    )
    def test_search_matches_scope_path_and_exact_key(self, text, found, browser, rows):
        make("other-key", scope="scope:shop-7", path="/refund/17/")
        assert listed(browser, q=text) == found

    def test_newest_request_is_first(self, browser, rows):
        assert listed(browser) == [f"{state}-key" for state in reversed(rows)]

    def test_number_of_queries_is_constant(self, browser, statements):
        make("first-key")
        browser.get(LIST)  # content types, the session
        with statements() as one:
            browser.get(LIST)
        IdempotencyKey.objects.bulk_create(
            IdempotencyKey(**values(f"key-{number}")) for number in range(99)
        )
        with statements() as hundred:
            assert len(listed(browser)) == 100
        assert len(hundred) == len(one) == 4, "session, user, count, rows"

    def test_no_body_is_read(self, browser, statements, rows):
        with statements() as sent:
            browser.get(LIST)
        [query] = [query["sql"] for query in sent if '"steps"' in query["sql"]]
        assert '"body",' not in query


class TestDetail:
    def test_detail_shows_the_key_but_not_the_body(self, browser):
        row = make(steps={"mail": {"result": "secret"}, "charge": {"result": "secret"}})
        html = browser.get(f"{LIST}{row.pk}/change/").content.decode()
        assert "3f1c0a52-key" in html
        assert "14 bytes" in html
        assert "charge, mail" in html
        assert "paid" not in html
        assert "secret" not in html

    def test_unfinished_request_is_shown(self, browser):
        row = abandoned()
        html = browser.get(f"{LIST}{row.pk}/change/").content.decode()
        assert "none" in html
        assert "abandoned" in html

    def test_detail_is_read_only(self, browser):
        row = make()
        assert browser.get(f"{LIST}add/").status_code == 403
        assert browser.post(f"{LIST}{row.pk}/change/", {"scope": "x"}).status_code == 403
        assert browser.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
        deletion = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
        browser.post(LIST, deletion)
        row.refresh_from_db()
        assert row.scope == "user:7"
        html = browser.get(LIST).content.decode()
        assert "delete_selected" not in html
        assert f"{LIST}add/" not in html


def test_list_is_forbidden_without_permission(client):
    user = User.objects.create_user("staff", is_staff=True)
    client.force_login(user)
    row = make()
    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{row.pk}/change/").status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_idempotencykey"))
    assert client.get(LIST).status_code == 200
    assert client.get(f"{LIST}{row.pk}/change/").status_code == 200


class TestMillions:
    """What is sent for the list reads a bounded number of rows, however many there are."""

    @pytest.fixture
    def table(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_dblock_idempotencykey (scope, key, fingerprint,"
                " fingerprint_version, method, path, headers, body_kind, token, owner, steps,"
                " created_at, completed_at, expires_at)"
                " SELECT 'user:7', n::text, '', 1, 'POST', '/', '{}', 'plain', 1, '', '{}', now(),"
                " now(), now() + n * interval '1 minute' FROM generate_series(1, 30000) n"
            )
            cursor.execute("ANALYZE django_dblock_idempotencykey")

    def test_list_neither_counts_nor_scans_all_rows(self, browser, statements, table):
        with statements() as sent:
            page = browser.get(LIST)
        assert page.context["cl"].result_count == 10_000
        ours = [query["sql"] for query in sent if "idempotencykey" in query["sql"]]
        assert len(ours) == 2
        for query in ours:
            assert rows_read(query) <= 10_000, query

    def test_last_page_reads_few_rows(self, browser, statements, table):
        with statements() as sent:
            assert browser.get(LIST, {"p": 100}).status_code == 200
        for query in sent:
            if "idempotencykey" in query["sql"]:
                assert rows_read(query["sql"]) <= 10_000

    def test_negative_twin_reads_all_rows(self, browser, statements, table, monkeypatch):
        from django.core.paginator import Paginator

        monkeypatch.setattr(BoundedPaginator, "count", Paginator.count)
        with statements() as sent:
            browser.get(LIST)
        assert (
            max(rows_read(query["sql"]) for query in sent if "idempotencykey" in query["sql"])
            == 30_000
        )

    def test_unfinished_requests_use_their_index(self, browser, statements, table):
        row = abandoned(expires_at=None)
        with statements() as sent:
            page = browser.get(LIST, {"state": "abandoned"})
        assert [each.pk for each in page.context["cl"].result_list] == [row.pk]
        for query in sent:
            if "idempotencykey" in query["sql"]:
                assert rows_read(query["sql"]) <= 1

    @pytest.mark.parametrize(
        "query",
        [
            {"o": "3"},
            {"o": "-6.2"},
            {"q": "no-such-text"},
            {"q": "user:7"},
            {"q": "user:7 29999"},
            {"status": "5"},
            {"state": "leased"},
        ],
        ids=str,
    )
    def test_no_query_string_reads_all_rows(self, query, browser, statements, table, monkeypatch):
        """Sorting by any column, a search or a filter without a match read the whole table."""
        monkeypatch.setattr("django_dblock.admin.NEWEST", 5_000)
        with statements() as sent:
            assert browser.get(LIST, query).status_code == 200
        for statement in sent:
            if "idempotencykey" in statement["sql"]:
                assert rows_read(statement["sql"]) <= 10_000, statement["sql"]

    def test_lookups_in_the_query_string_are_refused(self, browser):
        """``?path__icontains=x`` is Django's own way to any condition; none has an index."""
        assert browser.get(LIST, {"path__icontains": "x"}).status_code == 400

    def test_old_key_is_found_with_its_scope(self, browser, table, monkeypatch):
        monkeypatch.setattr("django_dblock.admin.NEWEST", 5_000)
        assert listed(browser, q="user:7 17") == ["17"]
        assert listed(browser, q="17") == [], "alone only among the newest"
        assert listed(browser, q="29999") == ["29999"]
        assert len(listed(browser, q="user:7")) == 100

    def test_only_indexed_columns_sort(self):
        model_admin = admin.site.get_model_admin(IdempotencyKey)
        assert set(model_admin.sortable_by) == {"id"}
        assert model_admin.show_facets == admin.ShowFacets.NEVER


def test_admin_is_registered_by_autodiscover():
    assert admin.site.is_registered(IdempotencyKey)
    assert reverse("admin:django_dblock_idempotencykey_changelist") == LIST


def test_without_the_admin_no_admin_module_is_imported():
    program = (
        "import django, sys;"
        "from django.conf import settings;"
        "settings.configure(INSTALLED_APPS=['django_dblock'],"
        " DATABASES={'default': {'ENGINE': 'django.db.backends.postgresql'}});"
        "django.setup();"
        "from django.core.checks import run_checks; run_checks();"
        "assert 'django_dblock.admin' not in sys.modules;"
        "assert 'django.contrib.admin' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class ToOther:
    def db_for_read(self, model, **hints):
        return "sqlite"  # a replica, or whatever else is not the primary

    def db_for_write(self, model, **hints):
        return "other" if model is IdempotencyKey else None


@pytest.mark.django_db(databases=["default", "other"])
@pytest.mark.parametrize("how", ["DBLOCK_DATABASE", "router"])
def test_list_reads_the_routers_alias(how, browser, settings):
    make("here")
    there = make("there")
    IdempotencyKey.objects.filter(pk=there.pk).delete()
    there.save(using="other", force_insert=True)
    if how == "DBLOCK_DATABASE":
        settings.DBLOCK_DATABASE = "other"
    model_admin = admin.site.get_model_admin(IdempotencyKey)
    if how == "router":
        settings.DATABASE_ROUTERS = [ToOther()]
    assert [row.key for row in model_admin.get_queryset(None)] == ["there"]
