"""Releasing a lease or ending a backend from the page: confirmed, exact, logged."""

import logging
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection, connections
from django.test import Client
from django.utils.dateparse import parse_datetime

from django_dblock import FencedLock, LockLost, fenced_lock
from tests.helpers import observe
from tests.monitor import scene
from tests.monitor.conftest import PAGE
from tests.monitor.pages import html, words

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

RELEASE, TERMINATE = PAGE + "release/", PAGE + "terminate/"


def fields(page):
    """What a browser would send."""
    form = page.split('<form method="post">')[1].split("</form>")[0]
    found = {}
    for tag in re.findall(r"<input type=\"hidden\"[^>]*>", form):
        name, value = re.search(r'name="([^"]*)"', tag)[1], re.search(r'value="([^"]*)"', tag)[1]
        found.setdefault(name, []).append(value)
    return found


def follow(client, path, posted):
    """Post it; return what the page says then."""
    answer = client.post(path, posted, follow=True)
    assert answer.redirect_chain[0][0].startswith(PAGE)
    return [str(message) for message in answer.context["messages"]]


@pytest.fixture
def audit(caplog):
    with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
        yield lambda: [each for each in caplog.records if each.name == "django_dblock.audit"]


class TestRelease:
    def test_release_asks_acts_and_logs(self, person, audit):
        ann = person("ann", "view", "release")
        with pytest.raises(LockLost), fenced_lock("nightly", ttl=60) as lock:
            page = html(ann.get(RELEASE, {"lease": "0:nightly"}))
            assert "nightly" in page
            assert str(lock.token) in page
            assert "The holder is not stopped." in page
            assert FencedLock.objects.get().token == lock.token, "only asked"
            said = follow(ann, RELEASE, fields(page))
            assert said == [
                "nightly is released. Its holder notices at its next heartbeat or guard."
            ]
            assert FencedLock.objects.get().token > lock.token
            with lock.guard():
                pass
        [record] = audit()
        assert (record.by, record.lock, record.slot, record.token) == (
            "ann",
            "nightly",
            0,
            lock.token,
        )
        assert record.levelname == "WARNING"
        [entry] = LogEntry.objects.all()
        assert entry.user.get_username() == "ann"
        assert entry.object_repr == "nightly (slot 0)"
        assert str(lock.token) in entry.change_message
        assert entry.object_id == str(FencedLock.objects.get().pk)

    def test_get_releases_nothing(self, root):
        with fenced_lock("nightly", ttl=60) as lock:
            root.get(RELEASE, {"lease": "0:nightly", "grant": f"0:{lock.token}:nightly"})
            lock.check()
            assert FencedLock.objects.get().token == lock.token

    def test_later_grant_is_not_released(self, root, audit):
        with fenced_lock("nightly", ttl=60) as old:
            page = html(root.get(RELEASE, {"lease": "0:nightly"}))
        with fenced_lock("nightly", ttl=60) as new:
            [said] = follow(root, RELEASE, fields(page))
            assert said == "nightly has ended, or has another holder by now. Nothing was done."
            assert FencedLock.objects.get().token == new.token > old.token
        assert audit() == []
        assert LogEntry.objects.count() == 0

    def test_free_lease_is_a_message(self, root):
        with fenced_lock("nightly", ttl=60):
            pass
        answer = root.get(RELEASE, {"lease": "0:nightly"}, follow=True)
        assert [str(each) for each in answer.context["messages"]] == [
            "The lease is no longer held. Nothing was done."
        ]

    def test_several_leases_are_released(self, root, observer, audit):
        for name in ("one", "two", "three"):
            scene.lease(observer, name)
        page = html(root.get(RELEASE, {"lease": ["0:one", "0:three"]}))
        assert len(follow(root, RELEASE, fields(page))) == 2
        assert [record.lock for record in audit()] == ["one", "three"]

    @pytest.mark.parametrize("name", ["a/b?c&d=e", "x:y:z", "ü 漢", "evil\u202egnp", "%2F+"])
    def test_any_name_survives_the_form(self, name, root, observer):
        scene.lease(observer, name)
        [link] = re.findall(r'href="([^"]*release/[^"]*)"', html(root.get(PAGE)))
        page = html(root.get(link.replace("&amp;", "&")))
        follow(root, RELEASE, {"grant": [f"0:1767225600060:{name}"]})
        assert FencedLock.objects.get().token > 1767225600060
        assert "\u202e" not in page.split('<form method="post">')[1].split("<dl>")[1]

    def test_wait_for_an_open_guard_is_bounded(self, root, rival, monkeypatch):
        from django_dblock.monitor import views as release

        monkeypatch.setattr(release, "_PATIENCE", 0.05)
        scene.lease(rival, "nightly")
        rival.execute("BEGIN; SELECT FROM django_dblock_fencedlock FOR KEY SHARE")
        [said] = follow(root, RELEASE, {"grant": ["0:1767225600060:nightly"]})
        rival.execute("ROLLBACK")
        assert "nightly was not released: canceling statement due to lock timeout" in said
        assert "If its holder has an open guarded transaction, wait until that has ended" in said

    def test_release_works_under_atomic_requests(self, root, observer, monkeypatch):
        """In one, nobody would see it before the commit, so the protocol refuses it."""
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        scene.lease(observer, "nightly")
        [said] = follow(root, RELEASE, {"grant": ["0:1767225600060:nightly"]})
        assert said.startswith("nightly is released.")

    def test_release_on_another_database(self, root, connect, audit):
        other = connect("other")
        scene.lease(other, "nightly")
        page = html(root.get(RELEASE, {"lease": "0:nightly", "using": "other"}))
        follow(root, RELEASE, fields(page))
        assert FencedLock.objects.using("other").get().token > 1767225600060
        assert audit()[0].using == "other"

    @pytest.mark.parametrize("grant", ["", "nightly", "0:nightly", "0:x:nightly", "x:7:nightly"])
    def test_malformed_form_is_400(self, grant, root):
        html(root.post(RELEASE, {"grant": [grant]}), 400)

    def test_unreachable_database_is_a_message(self, root, settings):
        settings.DBLOCK_DATABASE = "sqlite"
        answer = root.get(RELEASE, {"lease": "0:nightly"}, follow=True)
        [said] = map(str, answer.context["messages"])
        assert "needs PostgreSQL" in said, "and nobody claims to know that it is gone"


class TestTerminate:
    @pytest.fixture
    def holder(self, stage):
        session = stage.session("shop")
        stage.hold(session, ("inventory", "sku-1"))
        return session

    def asked(self, client, holder):
        """Follow the link on the page."""
        pid = holder.info.backend_pid
        [link, *_] = re.findall(
            rf'href="([^"]*terminate/\?pid={pid}&[^"]*)"', html(client.get(PAGE))
        )
        return html(client.get(link.replace("&amp;", "&")))

    def is_gone(self, observer, holder):
        return (
            observer.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s", [holder.info.backend_pid]
            ).fetchone()
            is None
        )

    def test_terminate_asks_acts_and_logs(self, person, holder, stage, audit):
        stage.want(stage.session("celery"), "inventory", "sku-1")
        ann = person("ann", "view", "terminate")
        page = self.asked(ann, holder)
        said = words(page)
        pid = holder.info.backend_pid
        assert f"{pid} shop" in said
        assert "inventory:sku-1 1 waiting" in said
        assert "idle in transaction" in said
        assert not self.is_gone(stage.observer, holder), "only asked"
        assert follow(ann, TERMINATE, fields(page)) == [
            f"Backend {pid} is being ended. Its uncommitted changes are rolled back."
        ]
        observe.until(lambda: self.is_gone(stage.observer, holder), "it ends")
        [record] = audit()
        assert (record.by, record.pid) == ("ann", pid)
        [entry] = LogEntry.objects.all()
        assert (entry.user.get_username(), entry.object_repr) == ("ann", f"backend {pid}")
        assert entry.get_admin_url() is None

    def test_waiter_can_be_ended(self, root, holder, stage):
        waiter = stage.session("celery")
        stage.want(waiter, "inventory", "sku-1")
        page = self.asked(root, waiter)
        assert "inventory:sku-1" in page
        follow(root, TERMINATE, fields(page))
        observe.until(lambda: self.is_gone(stage.observer, waiter), "it ends")
        assert not self.is_gone(stage.observer, holder)

    def test_get_ends_nothing(self, root, holder, stage):
        root.get(TERMINATE, {**fields(self.asked(root, holder)), "post": "yes"})
        assert not self.is_gone(stage.observer, holder)

    def test_recycled_pid_is_not_ended(self, root, holder, stage, audit):
        posted = fields(self.asked(root, holder))
        posted["start"] = [
            (parse_datetime(posted["start"][0]) - timedelta(microseconds=1)).isoformat()
        ]
        gone = (
            f"Backend {holder.info.backend_pid} has already ended, or holds no lock any more. "
            "Nothing was done."
        )
        assert follow(root, TERMINATE, posted) == [gone]
        answer = root.get(
            TERMINATE, {name: value[0] for name, value in posted.items()}, follow=True
        )
        assert [str(each) for each in answer.context["messages"]] == [gone]
        assert not self.is_gone(stage.observer, holder)
        assert audit() == []
        assert LogEntry.objects.count() == 0

    def test_backend_without_a_lock_is_not_ended(self, root, holder, stage):
        posted = fields(self.asked(root, holder))
        holder.execute("COMMIT")
        assert "holds no lock any more" in follow(root, TERMINATE, posted)[0]
        assert not self.is_gone(stage.observer, holder)

    def test_missing_database_right_is_a_message(self, root, holder, observer, monkeypatch):
        posted = fields(self.asked(root, holder))
        observer.execute(
            "DROP ROLE IF EXISTS dblock_app; CREATE ROLE dblock_app LOGIN;"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO dblock_app;"
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO dblock_app"
        )
        connection.close()
        with monkeypatch.context() as patch:
            patch.setitem(connection.settings_dict, "USER", "dblock_app")
            [said] = follow(root, TERMINATE, posted)
            connection.close()
        observer.execute("DROP OWNED BY dblock_app; DROP ROLE dblock_app")
        assert "was not ended" in said
        assert "GRANT pg_signal_backend, pg_read_all_stats" in said
        assert not self.is_gone(observer, holder)

    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"pid": "1"},
            {"pid": "x", "start": "2026-01-01T00:00:00Z"},
            {"pid": "1", "start": "yesterday"},
            {"pid": "1", "start": "2026-13-01T00:00:00Z"},
        ],
    )
    def test_malformed_form_is_400(self, given, root):
        html(root.post(TERMINATE, given), 400)
        html(root.get(TERMINATE, given), 400)

    def test_impossible_pid_is_a_message(self, root):
        [said] = follow(root, TERMINATE, {"pid": "-1", "start": "2026-01-01T00:00:00Z"})
        assert said == "Backend -1 has already ended, or holds no lock any more. Nothing was done."

    def test_unreachable_database_is_a_message(self, root, settings):
        settings.DBLOCK_DATABASE = "sqlite"
        given = {"pid": "1", "start": "2026-01-01T00:00:00Z"}
        answer = root.get(TERMINATE, given, follow=True)
        [said] = map(str, answer.context["messages"])
        assert "needs PostgreSQL" in said, "and nobody claims to know that it is gone"


@pytest.mark.parametrize(
    ("path", "permission"), [(RELEASE, "release"), (TERMINATE, "terminate")], ids=["r", "t"]
)
@pytest.mark.parametrize("method", ["get", "post"])
class TestWhoMay:
    GIVEN = {  # noqa: RUF012 - data
        "lease": "0:nightly", "grant": "0:7:nightly", "pid": "1", "start": "2026-01-01T00:00:00Z",
    }  # fmt: skip

    def test_own_permission_is_required(self, path, permission, method, person):
        other = {"release": "terminate", "terminate": "release"}[permission]
        html(getattr(person("ann", "view", other), method)(path, self.GIVEN), 403)

    def test_view_permission_is_required(self, path, permission, method, person):
        html(getattr(person("ann", "release", "terminate"), method)(path, self.GIVEN), 403)

    def test_anonymous_user_must_sign_in(self, path, permission, method, client, db):
        answer = getattr(client, method)(path, self.GIVEN)
        assert answer["Location"].startswith("/admin/login/")

    def test_user_with_permissions_may_act(self, path, permission, method, person):
        answer = getattr(person("ann", "view", permission), method)(path, self.GIVEN)
        assert answer.status_code == 302
        assert answer["Location"] == PAGE


@pytest.mark.parametrize("path", [RELEASE, TERMINATE])
def test_post_without_the_csrf_token_does_nothing(path, root):
    """From another site, with this one's cookies."""
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = root.cookies
    html(strict.post(path, TestWhoMay.GIVEN), 403)


def test_post_with_the_csrf_token_acts(root):
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = root.cookies
    with pytest.raises(LockLost), fenced_lock("nightly", ttl=60) as lock:
        posted = fields(html(strict.get(RELEASE, {"lease": "0:nightly"})))
        assert "csrfmiddlewaretoken" in posted
        assert strict.post(RELEASE, posted).status_code == 302
        with lock.guard():
            pass
