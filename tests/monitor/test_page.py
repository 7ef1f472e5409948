"""The monitor page on real locks, and who may see it."""

import re

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections
from django.test import RequestFactory
from django.urls import resolve

from django_dblock import advisory_lock, fenced_lock
from django_dblock.idempotency.identity import masked
from django_dblock.models import FencedLock
from tests.monitor import scene
from tests.monitor.conftest import PAGE
from tests.monitor.pages import html, shown, words

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class TestWhatItShows:
    def test_page_with_nothing_locked_says_so(self, root):
        page = shown(root)
        for said in (
            "Nothing is waiting.", "No advisory lock is held.", "No lease is held.",
            "No request is in flight.",
        ):  # fmt: skip
            assert said in page
        assert "<svg class" not in page.split("dblock-live")[1].split("</main>")[0]

    def test_page_shows_queues_leases_and_requests(self, root, stage):
        found = scene.busy(stage)
        scene.leases(stage.observer)
        scene.requests()
        page = shown(root)
        said = words(page)
        pid = {name: session.info.backend_pid for name, session in found.items()}
        assert f"{pid['gunicorn']} gunicorn blocks 10 waiters with inventory:sku-1" in said
        assert "idle in transaction" in said
        assert f"{pid['mailer']} mailer" in said
        assert "order:17 1 of 1" in said
        assert "and 4 more wait" in said
        assert "rebuild-search" in said
        assert re.search(r"\b\d+ s of 1 min 0 s not renewed", said)
        assert "free in" in said
        assert "job: settle, build: 2026.11.3" in said
        assert f"user:7:{masked('4f1c2a90-77')}" in said
        assert "4f1c2a90-77" not in page, "keys are masked"
        assert "abandoned" in said
        assert page.count('class="dblock-arrow') == page.count("dblock-head")

    def test_table_has_the_graphs_information(self, root, stage):
        """Each who waits has a row in the table, also where the picture collapses them."""
        found = scene.busy(stage)
        table = shown(root).split("The same information as a table")[1].split("</table>")[0]
        waiting = {name for name in found if name not in ("gunicorn", "import")} - {
            "report 1", "report 2",
        }  # fmt: skip
        for name in waiting:
            assert f'dblock-pid">{found[name].info.backend_pid}<' in table
        assert table.count('scope="row"') == len(waiting)

    def test_names_are_escaped(self, root, observer):
        scene.lease(observer, "<script>alert(1)</script>")
        scene.lease(observer, "evil\u202egnp\x1b[31m", owner='"><img src=x>')
        page = shown(root)
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "\u202e" not in page
        assert "evil\\u202egnp\\x1b[31m" in page

    def test_search_limits_the_rows(self, root, stage):
        scene.busy(stage)
        page = shown(root, q="catalogue")
        assert "catalogue" in page
        assert "inventory:sku-1" not in page
        assert "Only matches of “catalogue” are shown" in page
        assert "No lease matches." in page

    def test_search_text_is_escaped(self, root):
        page = shown(root, q='"><script>alert(1)</script>')
        assert "<script>alert" not in page

    def test_fragment_is_only_the_live_part(self, root):
        page = shown(root, fragment="1")
        assert "Nothing is waiting." in page
        assert "<html" not in page
        assert "dblock-bar" not in page

    def test_numbers_are_not_grouped(self, root, settings, observer):
        """A pid of 12.345 could not be ended, and ``width="1,5"`` is not SVG."""
        settings.USE_THOUSAND_SEPARATOR = True
        settings.LANGUAGE_CODE = "de"
        scene.lease(observer, "nightly", waiting=())
        with advisory_lock("a"):
            pid = connection.connection.info.backend_pid
            page = shown(root)
        assert f"pid={pid}&amp;" in page
        assert ">1767225600060<" in page

    def test_database_can_be_chosen(self, root):
        with advisory_lock("here"), advisory_lock("there", using="other"):
            here, there = shown(root), shown(root, using="other")
        assert ("here" in words(here), "there" in words(here)) == (True, False)
        assert "there" in words(there)
        assert re.search(r'using=other" aria-current="true"', there)
        assert "using=other" in there.split("dblock-live")[1], "also where something is ended"

    def test_dblock_database_is_the_default(self, root, settings):
        settings.DBLOCK_DATABASE = "other"
        with advisory_lock("there"):
            assert "there" in words(shown(root))

    @pytest.mark.parametrize("using", ["sqlite", "nowhere", "'"])
    def test_unknown_database_is_400(self, using, root):
        html(root.get(PAGE, {"using": using}), 400)

    def test_page_of_five_thousand_locks_stays_small(self, root, stage):
        session = stage.session("import")
        session.execute("BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 5000) n")
        page = shown(root)
        assert "5000 advisory locks held" in words(page)
        assert "and 4994 more" in page
        assert len(page) < 100_000

    def test_excess_rows_are_counted(self, root, observer):
        for number in range(130):
            scene.lease(observer, f"lease-{number:03}", left=27 + number)
        page = shown(root)
        assert "The first 100 of 130 are shown." in page
        assert "lease-129" not in page
        assert "lease-129" in shown(root, q="129")


class TestRefresh:
    def test_default_refresh_is_five_seconds(self, root):
        page = shown(root)
        assert '<noscript><meta http-equiv="refresh" content="5;url=/admin/' in page
        assert "monitor.js" in page

    def test_refresh_can_be_switched_off(self, root):
        page = shown(root, refresh="0")
        assert "http-equiv" not in page.split("</head>")[0].replace("Content-Type", "")
        assert "monitor.js" not in page
        assert "Refresh now" in page

    def test_refresh_keeps_search_and_database(self, root):
        page = shown(root, refresh="30", q="sku", using="other")
        assert 'content="30;url=/admin/django_dblock/lockmonitor/?using=other&amp;q=sku' in page

    @pytest.mark.parametrize("given", ["1", "-5", "x", "0.1", "99999"])
    def test_unknown_period_is_the_default(self, given, root):
        assert 'content="5;' in shown(root, refresh=given)

    def test_page_is_not_cached(self, root):
        assert "no-store" in root.get(PAGE)["Cache-Control"]


LIMITS = 9
"""BEGIN, lock_timeout and ROLLBACK around each statement that reads tables."""


class TestBudget:
    def test_number_of_statements_of_the_page_is_constant(self, root, stage, statements):
        shown(root)  # content types
        with statements() as nothing:
            shown(root)
        scene.busy(stage)
        scene.leases(stage.observer)
        scene.requests()
        with statements() as much:
            shown(root)
        assert len(much) == len(nothing) == 6 + LIMITS, "user; locks, leases, latches, requests"

    def test_permissions_cost_two_statements_more(self, person, statements):
        ann = person("ann", "view")
        shown(ann)
        with statements() as sent:
            shown(ann)
        assert len(sent) == 8 + LIMITS, "of the user, and of their groups"


class TestPermissions:
    def test_anonymous_user_must_sign_in(self, client, db):
        answer = client.get(PAGE)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/admin/login/")

    def test_staff_without_permission_is_403(self, person):
        html(person("ann").get(PAGE), 403)
        html(person("ben", "release", "terminate").get(PAGE), 403)

    def test_other_permissions_do_not_suffice(self, person):
        from django.contrib.auth.models import Permission

        client = person("ann")
        User.objects.get(username="ann").user_permissions.add(
            Permission.objects.get(codename="view_fencedlock")
        )
        html(client.get(PAGE), 403)

    @pytest.mark.parametrize(
        "may", [(), ("release",), ("terminate",), ("release", "terminate")], ids=str
    )
    def test_links_follow_permissions(self, may, person, stage):
        scene.busy(stage)
        scene.leases(stage.observer)
        page = shown(person("ann", "view", *may))
        assert ("lockmonitor/release/" in page) == ("release" in may)
        assert ("lockmonitor/terminate/" in page) == ("terminate" in may)

    def test_admin_index_links_to_the_monitor(self, root, person):
        assert PAGE in html(root.get("/admin/"))
        assert PAGE in html(root.get("/admin/django_dblock/"))
        assert PAGE in html(person("ann", "view").get("/admin/"))
        assert PAGE not in html(person("ben", "release").get("/admin/"))

    def test_monitor_has_no_pages_to_add_change_or_delete(self, root):
        from django.contrib import admin

        from django_dblock.models import LockMonitor

        model_admin = admin.site.get_model_admin(LockMonitor)
        request = RequestFactory().get(PAGE)
        request.user = User.objects.get(username="root")
        assert model_admin.get_model_perms(request) == {
            "add": False, "change": False, "delete": False, "view": True,
        }  # fmt: skip
        for path in ("add/", "1/change/", "1/delete/"):
            assert root.get(PAGE + path).status_code == 404


class TestWhatIsHidden:
    @pytest.fixture
    def plain_role(self, observer, monkeypatch):
        """The role of the application may read and write its tables, and nothing more."""
        observer.execute(
            "DROP ROLE IF EXISTS dblock_app; CREATE ROLE dblock_app LOGIN;"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO dblock_app;"
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO dblock_app"
        )
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "USER", "dblock_app")
        yield "dblock_app"
        connection.close()
        monkeypatch.undo()
        observer.execute("DROP OWNED BY dblock_app; DROP ROLE dblock_app")

    def test_hidden_session_is_shown_as_hidden(self, root, stage, plain_role):
        session = stage.session("shop")
        stage.hold(session, ("inventory", "sku-1"))
        stage.want(stage.session("celery"), "inventory", "sku-1")
        said = words(shown(root))
        pid = session.info.backend_pid
        assert f"{pid} shop blocks 1 waiter with inventory:sku-1" in said
        assert "hidden" in said
        assert "pg_read_all_stats to show the details" in said
        assert "insufficient privilege" not in said
        assert f"pid={pid}" not in shown(root), "what can't be seen can't be ended"

    def test_own_session_is_not_hidden(self, root, stage, plain_role):
        session = stage.session("shop", user=plain_role)
        stage.hold(session, ("inventory", "sku-1"))
        page = shown(root)
        assert "hidden" not in words(page)
        assert f"pid={session.info.backend_pid}&amp;" in page


class TestErrors:
    def test_missing_table_is_a_message(self, root, observer):
        observer.execute("ALTER TABLE django_dblock_fencedlock RENAME TO elsewhere")
        try:
            with advisory_lock("a"):
                page = shown(root)
        finally:
            observer.execute("ALTER TABLE elsewhere RENAME TO django_dblock_fencedlock")
        assert "Leases can&#x27;t be shown: the table is not in this database." in page
        assert "manage.py migrate" in page
        assert 'class="dblock-name">a<' in page, "the rest is shown"

    def test_unreachable_database_is_a_message(self, root, monkeypatch):
        connections["other"].close()
        monkeypatch.setitem(connections["other"].settings_dict, "PORT", "1")
        page = shown(root, using="other")
        assert "Advisory locks can&#x27;t be shown: connection failed" in page

    def test_other_engine_is_a_message(self, root, settings):
        settings.DBLOCK_DATABASE = "sqlite"
        assert "django_dblock needs PostgreSQL" in words(shown(root)).replace("&#x27;", "'")

    def test_views_opt_out_of_atomic_requests(self, root, settings):
        """Each view of it is out of the transaction, of every database."""
        for page in ("", "release/", "terminate/"):
            view = resolve(PAGE + page).func
            assert view._non_atomic_requests >= {"default", "other"}


class TestMigration:
    def test_migration_creates_the_permissions(self, db):
        from django.contrib.auth.models import Permission

        found = set(
            Permission.objects.filter(content_type__app_label="django_dblock").values_list(
                "codename", flat=True
            )
        )
        assert {"view_lockmonitor", "terminate_backend", "release_fencedlock"} <= found
        assert not {"add_lockmonitor", "change_lockmonitor", "delete_lockmonitor"} & found

    def test_dumpdata_skips_the_proxy_model(self, db):
        from io import StringIO

        from django.core.management import call_command

        with fenced_lock("a", ttl=30):
            out = StringIO()
            call_command("dumpdata", "django_dblock", stdout=out)
            assert "lockmonitor" not in out.getvalue()
            assert FencedLock.objects.count() == 1
