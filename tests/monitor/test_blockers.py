"""The monitor and ``dblock list`` name the session that all others wait for, whatever it locks.

Only advisory locks used to be followed: with A holding a row lock and B holding an advisory lock
while it waits for A's row, B was named, in red, with a link that ends it.
"""

import json
from io import StringIO

import psycopg
import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from django_dblock import (
    FencedLock,
    advisory_lock,
    fenced_lock,
    namespace,
    terminate_backend,
)
from django_dblock.inspect import lock_waits
from tests.helpers import observe
from tests.monitor import scene
from tests.monitor.conftest import PAGE
from tests.monitor.pages import html, shown, words

pytestmark = pytest.mark.django_db(transaction=True)


def listed(*arguments):
    out = StringIO()
    call_command("dblock", "list", *arguments, stdout=out)
    return out.getvalue()


def pid_of(session):
    return session.info.backend_pid


def send_and_see_it_wait(stage, session, statement):
    """Send a statement that waits for a lock of any type."""
    session.pgconn.send_query(statement.encode())
    observe.until(
        lambda: stage.observer.execute(
            "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s", [pid_of(session)]
        ).fetchone(),
        f"{pid_of(session)} waits",
    )


@pytest.fixture
def row_lock(stage, db):
    """A holds a row lock; B holds an advisory lock and waits for the row; two wait for B."""
    User.objects.create(username="x")
    found = {"A": stage.session("report"), "B": stage.session("gunicorn")}
    found["A"].execute("BEGIN")
    found["A"].execute("SELECT id FROM auth_user WHERE username = 'x' FOR UPDATE")
    stage.hold(found["B"], ("inventory", "x"))
    update = "UPDATE auth_user SET first_name = '1' WHERE username = 'x'"
    send_and_see_it_wait(stage, found["B"], update)
    for name in ("C", "D"):
        found[name] = stage.session("gunicorn")
        stage.want(found[name], "inventory", "x")
    return found


class TestRowLock:
    def test_monitor_names_row_lock_holder(self, root, row_lock):
        said = words(shown(root))
        assert f"{pid_of(row_lock['A'])} report blocks 3 waiters" in said
        assert f"{pid_of(row_lock['B'])} gunicorn blocks" not in said

    def test_monitor_draws_what_outsider_holds_and_ran(self, root, row_lock):
        page = shown(root)
        said = words(page)
        assert "a row of auth_user" in said
        assert "SELECT id FROM auth_user" in said
        graph = page.split('<svg class="dblock-graph"')[1].split("</svg>\n</div>")[0]
        assert f"{pid_of(row_lock['A'])}  report" in graph

    def test_monitor_marks_holder_as_waiting_for_row(self, root, row_lock):
        said = words(shown(root))
        sessions = said.split("Advisory locks by holder")[1]
        assert "waits for a row of auth_user" in sessions

    def test_list_names_row_lock_holder(self, row_lock):
        table = listed()
        [line] = [
            line for line in table.splitlines() if line.startswith(str(pid_of(row_lock["A"])))
        ]
        assert "report" in line
        assert "auth_user" in line
        assert "3" in line
        held = next(line for line in table.splitlines() if " held" in line)
        assert f"waits for a row of auth_user behind {pid_of(row_lock['A'])}" in held

    def test_list_json_has_outsiders(self, row_lock):
        found = json.loads(listed("--json"))
        [blocker] = found["blockers"]
        assert blocker["pid"] == pid_of(row_lock["A"])
        assert blocker["program"] == "report"
        assert blocker["keeps"] == 3
        assert "auth_user" in json.dumps(blocker["holds"])
        assert "FOR UPDATE" in blocker["query"]


class TestOtherLockTypes:
    def test_relation_lock_holder_is_named(self, root, stage):
        """A migration's table lock, and a holder of an advisory lock that waits for the table."""
        migration, holder, waiter = (stage.session(name) for name in ("migrate", "shop", "shop"))
        migration.execute("BEGIN; LOCK TABLE auth_user IN ACCESS EXCLUSIVE MODE")
        stage.hold(holder, ("inventory", "x"))
        send_and_see_it_wait(stage, holder, "SELECT count(*) FROM auth_user")
        stage.want(waiter, "inventory", "x")
        try:
            table = listed()
            said = words(shown_without_users(root))
        finally:
            migration.execute("ROLLBACK")
        assert f"waits for auth_user behind {pid_of(migration)}" in table
        assert f"{pid_of(migration)} migrate blocks 2 waiters" in said

    def test_chain_over_two_outsiders_ends_at_the_last(self, stage):
        User.objects.create(username="x")
        User.objects.create(username="y")
        first, second, holder = (stage.session(name) for name in ("first", "second", "shop"))
        first.execute("BEGIN; SELECT id FROM auth_user WHERE username = 'x' FOR UPDATE")
        second.execute("BEGIN; SELECT id FROM auth_user WHERE username = 'y' FOR UPDATE")
        send_and_see_it_wait(stage, second, "UPDATE auth_user SET last_name='' WHERE username='x'")
        stage.hold(holder, ("inventory", "x"))
        send_and_see_it_wait(stage, holder, "UPDATE auth_user SET last_name='' WHERE username='y'")
        found = json.loads(listed("--json"))["blockers"]
        keeps = {each["program"]: each["keeps"] for each in found}
        waits = {each["program"]: each["waits_for"] for each in found}
        assert keeps == {"first": 2, "second": 1}
        assert waits == {"first": None, "second": "a row of auth_user"}

    def test_no_outsiders_without_other_waits(self, stage, statements):
        stage.hold(stage.session("shop"), ("inventory", "x"))
        with statements() as sent:
            found = json.loads(listed("--json"))
        assert found["blockers"] == []
        looked = [query for query in sent if "pg_locks" in query["sql"]]
        assert len(looked) == 1, "no statement looks for those who wait elsewhere"


def shown_without_users(client):
    """The page, where auth_user is locked: the session of a user can't be read."""
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.test import RequestFactory

    from django_dblock.monitor import views

    request = RequestFactory().get(PAGE)
    request.user = User(username="root", is_superuser=True, is_active=True, is_staff=True)
    answer = views.show(request, admin.site)
    answer.render()
    return answer.content.decode()


class TestEndingOutsiders:
    """A session without an advisory lock is ended only with the permission for it."""

    TERMINATE = f"{PAGE}terminate/"

    def given(self, row_lock, observer):
        pid = pid_of(row_lock["A"])
        [start] = observer.execute(
            "SELECT backend_start FROM pg_stat_activity WHERE pid = %s", [pid]
        ).fetchone()
        return {"pid": pid, "start": start.isoformat()}

    def test_outsider_is_not_ended_without_permission(self, person, row_lock, observer):
        ann = person("ann", "view", "terminate")
        given = self.given(row_lock, observer)
        assert f"pid={given['pid']}&amp;" not in shown(ann)
        html(ann.get(self.TERMINATE, given), 403)
        html(ann.post(self.TERMINATE, given), 403)
        assert row_lock["A"].execute("SELECT 1").fetchone()

    def test_waiting_outsider_has_a_link_only_with_permission(self, person, row_lock, stage):
        User.objects.create(username="y")
        stage.session("other").execute(
            "BEGIN; SELECT id FROM auth_user WHERE username = 'y' FOR UPDATE"
        )
        update = "UPDATE auth_user SET first_name = '1' WHERE username = 'y'"
        send_and_see_it_wait(stage, row_lock["A"], update)
        link = f"pid={pid_of(row_lock['A'])}&amp;"
        assert link in shown(person("bob", "view", "terminate", "others"))
        page = shown(person("ann", "view", "terminate"))
        assert link not in page
        assert f"pid={pid_of(row_lock['B'])}&amp;" in page

    def test_outsider_is_ended_with_permission(self, person, row_lock, observer):
        ann = person("ann", "view", "terminate", "others")
        given = self.given(row_lock, observer)
        assert f"pid={given['pid']}&amp;" in shown(ann)
        asked = words(html(ann.get(self.TERMINATE, given)))
        assert "a row of auth_user 3 waiting" in asked
        assert "SELECT id FROM auth_user" in asked
        assert ann.post(self.TERMINATE, given).status_code == 302
        with pytest.raises(psycopg.OperationalError):
            row_lock["A"].execute("SELECT 1")

    def test_command_ends_outsider_after_showing_it(self, row_lock):
        pid = pid_of(row_lock["A"])
        out = StringIO()
        call_command("dblock", "terminate", str(pid), "--yes", stdout=out)
        assert "a row of auth_user" in out.getvalue()
        assert f"Backend {pid} is being ended" in out.getvalue()
        with pytest.raises(psycopg.OperationalError):
            row_lock["A"].execute("SELECT 1")

    def test_bystander_is_never_ended(self, row_lock, stage):
        """A session that blocks nobody is none of the command's business."""
        other = stage.session("bystander")
        other.execute("BEGIN; SELECT count(*) FROM auth_user")
        with pytest.raises(CommandError, match="not ended"):
            call_command("dblock", "terminate", str(pid_of(other)), "--yes")
        assert terminate_backend(pid_of(other), blocking=True) is False
        assert other.execute("SELECT 1").fetchone()


class TestNamespaces:
    """With namespaces only the current one is shown and ended, unless a permission says more."""

    @pytest.fixture
    def two(self, stage, observer, settings):
        settings.DBLOCK_NAMESPACE = "acme"
        for name in ("acme", "globex"):
            session = stage.session(name)
            key = ("invoice", name)
            stage.namespace = name
            stage.hold(session, key)
            scene.lease(observer, f"{name}::nightly")
        stage.namespace = ""
        foreign = stage.session("psql")
        foreign.execute("BEGIN; SELECT pg_advisory_xact_lock(7)")

    def test_page_shows_only_the_current_namespace(self, person, two):
        said = words(shown(person("ann", "view")))
        assert "invoice:acme" in said
        assert "acme::nightly" in said
        assert "globex" not in said
        assert "psql" not in said
        assert "Only locks of the namespace “acme” are shown." in said

    def test_permission_shows_all_namespaces(self, person, two):
        said = words(shown(person("ann", "view", "others")))
        assert "globex::nightly" in said
        assert "psql" in said
        assert "Only locks of the namespace" not in said

    def test_admin_lists_show_only_the_current_namespace(self, client, two, observer):
        from django.contrib.auth.models import Permission

        from tests.idempotency.rows import abandoned

        for name in ("acme", "globex"):
            abandoned(f"{name}-key", namespace=name)
        user = User.objects.create_user("ann", is_staff=True)
        codenames = ["view_fencedlock", "view_idempotencykey", "view_other_namespaces"]
        for may in (codenames[:2], codenames):
            user.user_permissions.set(Permission.objects.filter(codename__in=may))
            client.force_login(user)
            leases = client.get("/admin/django_dblock/fencedlock/").content.decode()
            keys = client.get("/admin/django_dblock/idempotencykey/").content.decode()
            for page in (leases, keys):
                assert "acme" in page
                assert ("globe" in page) == (len(may) == 3)
        found = json.loads(listed("--json", "--kind", "idempotency"))["idempotency"]
        assert [request["namespace"] for request in found] == ["acme"]
        found = json.loads(listed("--json", "--kind", "idempotency", "--all-namespaces"))
        assert len(found["idempotency"]) == 2

    def test_admin_search_finds_own_rows_behind_those_of_others(
        self, person, observer, settings, monkeypatch
    ):
        from tests.idempotency.rows import abandoned

        monkeypatch.setattr("django_dblock.admin.MOST_FOUND", 2)
        settings.DBLOCK_NAMESPACE = "acme"
        for tenant in ("acme", "a", "b", "c"):
            scene.lease(observer, f"{tenant}::nightly")
            abandoned(f"{tenant}-key", namespace=tenant)
        ann = person("ann", "view_fencedlock", "view_idempotencykey")
        for model, word in {"fencedlock": "nightly", "idempotencykey": "/pay/"}.items():
            found = ann.get(f"/admin/django_dblock/{model}/", {"q": word}).context["cl"]
            assert found.result_count == 1, model

    def test_other_namespaces_do_not_crowd_out_the_current_one(self, person, observer, settings):
        settings.DBLOCK_NAMESPACE = "acme"
        observer.execute(
            "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at,"
            " renewed_at, expires_at, lock_delay, grants, metadata) SELECT name, 0, 1, 'w', now(),"
            " now(), now() - interval '1 day', '0', 1, '{}'"
            " FROM unnest(ARRAY['a::1', 'a::2', 'a::3', 'acme::ended', 'ended']) AS name"
        )
        observer.execute(
            "INSERT INTO django_dblock_idempotencykey (namespace, scope, key, fingerprint,"
            " fingerprint_version, method, path, headers, body_kind, token, owner, steps,"
            " created_at, locked_until) SELECT CASE n WHEN 0 THEN 'acme' ELSE 'globex' END,"
            " 'user:7', n::text, '', 1, 'POST', '/pay/', '{}', 'plain', 1, 'worker-' || n, '{}',"
            " now(), now() - interval '1 day' - n * interval '1 minute'"
            " FROM generate_series(0, 150) n"
        )
        found = json.loads(listed("--json", "--kind", "fenced", "--limit", "2"))
        assert [lease["name"] for lease in found["fenced"]] == ["acme::ended"]
        assert found["notes"] == []
        assert "worker-0" in words(shown(person("ann", "view")))
        settings.DBLOCK_NAMESPACE = str  # a callable: the current namespace is the empty one
        found = json.loads(listed("--json", "--kind", "fenced", "--limit", "2"))
        assert [lease["name"] for lease in found["fenced"]] == ["ended"]

    def test_empty_list_says_that_only_one_namespace_was_looked_at(self, two):
        said = "Nothing is locked in the namespace 'none'. --all-namespaces shows all locks.\n"
        assert listed("--namespace", "none") == said
        assert "globex::nightly" in listed("--namespace", "none", "--all-namespaces")

    def test_list_says_which_locks_have_no_known_namespace(self, two, settings):
        settings.DBLOCK_LABELS = "off"
        assert "Note: advisory locks without a label are not shown" in listed()
        assert "Note" not in listed("--all-namespaces")
        with namespace("acme"), advisory_lock("unlabelled"):
            keyed = listed("--namespace", "acme", "--key", "unlabelled")
        assert "exclusive" in keyed, "its number is that of the namespace"
        assert "Note" not in keyed
        settings.DBLOCK_LABELS = "full"
        with namespace("7"), fenced_lock("nightly", ttl=30):
            said, keyed = listed(), listed("--namespace", "7", "--key", "nightly")
        assert said.startswith("There is nothing to show.\n")
        assert "nightly~" in keyed
        assert "Note" not in keyed
        assert "Note: fenced is not shown: no name shows the namespace '7'" in said
        assert "Note: latches is not shown: no name shows the namespace '7'" in said

    def test_other_namespaces_leases_are_not_ended(self, person, two):
        ann = person("ann", "view", "release")
        row = FencedLock.objects.get(name="globex::nightly")
        asked = ann.get(f"{PAGE}release/", {"lease": "0:globex::nightly"})
        assert asked.status_code == 302
        html(ann.post(f"{PAGE}release/", {"grant": f"0:{row.token}:globex::nightly"}), 403)
        own = FencedLock.objects.get(name="acme::nightly")
        grant = {"grant": f"0:{own.token}:acme::nightly"}
        assert ann.post(f"{PAGE}release/", grant).status_code == 302

    def test_other_namespaces_backends_are_not_ended(self, person, two, stage):
        ann = person("ann", "view", "terminate")
        for lock in lock_waits().locks:
            given = {"pid": lock.pid, "start": lock.backend_start.isoformat()}
            page = ann.get(f"{PAGE}terminate/", given)
            assert page.status_code == (200 if lock.name else 302)
            if not lock.name:
                ann.post(f"{PAGE}terminate/", given)
        assert len(lock_waits().locks) == 3, "nothing was ended"

    def test_list_shows_current_namespace_and_all_on_request(self, two):
        assert "globex" not in listed()
        assert "globex::nightly" in listed("--all-namespaces")
        other = json.loads(listed("--json", "--namespace", "globex"))
        assert [lock["name"] for lock in other["advisory"]] == ["invoice:globex"]
        assert [lease["name"] for lease in other["fenced"]] == ["globex::nightly"]

    def test_blocker_of_another_namespace_hides_its_statement(self, person, stage, settings):
        settings.DBLOCK_NAMESPACE = "acme"
        User.objects.create(username="x")
        stage.namespace = "globex"
        theirs, ours = stage.session("globex"), stage.session("acme")
        stage.hold(theirs, ("invoice", "secret"))
        theirs.execute("SELECT id FROM auth_user WHERE username = 'x' FOR UPDATE")
        stage.namespace = "acme"
        stage.hold(ours, ("invoice", "a"))
        send_and_see_it_wait(
            stage, ours, "UPDATE auth_user SET first_name = '1' WHERE username = 'x'"
        )
        page = shown(person("ann", "view", "terminate"))
        assert f"{pid_of(theirs)} globex blocks 1 waiter with a row of auth_user" in words(page)
        assert "SELECT id FROM auth_user" not in page
        assert f"pid={pid_of(theirs)}&amp;" not in page


class TestWhatItRan:
    def test_list_hides_the_packages_statement(self, stage):
        from django_dblock import advisory_lock

        with advisory_lock("inventory", "x"):
            observed = []
            import threading

            from django.db import connections

            def look():
                observed.append((listed(), listed("--json")))
                connections.close_all()

            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        [(table, text)] = observed
        assert "pg_try_advisory_xact_lock" not in table
        assert "took this lock as its last statement" in table
        assert "tests" in table.splitlines()[1], "the program's name"
        [lock] = json.loads(text)["advisory"]
        assert (lock["query"], lock["last_statement"]) == (None, "took this lock")


class TestLongQueues:
    def test_chain_of_waiters_is_not_repeated_on_each_line(self, stage):
        """The 40th waiter used to name all 39 in front of it: the text grew with the square."""
        stage.hold(stage.session("shop"), ("inventory", "x"))
        holder = pid_of(stage._opened[-1])
        for _ in range(20):
            stage.want(stage.session("shop"), "inventory", "x")
        found = json.loads(listed("--json"))["advisory"]
        waiting = [lock for lock in found if not lock["granted"]]
        assert [lock["blocked_by"] for lock in waiting] == [[holder]] * 20
        assert [lock["place"] for lock in waiting] == list(range(1, 21))
        assert f"waits for {holder}, place 20" in listed()
