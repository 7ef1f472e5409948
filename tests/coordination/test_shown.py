"""What operators are shown of semaphores, read-write locks, leaders, partitions and jobs."""

import json
import threading
from contextlib import ExitStack, contextmanager

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import CommandError
from django.db import connection
from prometheus_client import CollectorRegistry

from django_dblock import (
    LockLost,
    LockTimeout,
    advisory_semaphore,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    latch,
    leadership,
    once_per,
    partitions,
    signals,
)
from django_dblock.contrib.prometheus_state import StateCollector
from django_dblock.fencing.lease_name import ROLES
from django_dblock.idempotency.identity import masked, shown_key
from django_dblock.inspect import fenced_leases
from django_dblock.models import FencedTicket, LatchPart
from django_dblock.testing import assert_no_locks
from tests.helpers import observe, queueing
from tests.helpers.commands import run
from tests.monitor.conftest import PAGE
from tests.monitor.pages import html, words

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("within_a_period")]


def semaphore(**options):
    return fenced_semaphore("openai", "acme", permits=3, ttl=30, **options)


def catalogue(**options):
    return fenced_rwlock("catalogue").write(ttl=30, **options)


def reading(**options):
    return fenced_rwlock("catalogue").read(ttl=30, **options)


@contextmanager
def waiting(block, name):
    """Let another thread wait for the block, until it has its place in the queue."""
    before = FencedTicket.objects.filter(name=name).count()

    def wait():
        try:
            with block(timeout=30):
                pass
        finally:
            connection.close()

    thread = threading.Thread(target=wait)
    thread.start()
    tickets = FencedTicket.objects.filter(name=name)
    observe.until(lambda: tickets.count() > before, "it waits in turn")
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def scene():
    """Every kind of lease held, those of semaphores and read-write locks waited for."""
    with ExitStack() as stack:
        waiters = stack.enter_context(ExitStack())
        stack.enter_context(fenced_lock("nightly", ttl=30))
        stack.enter_context(semaphore(units=2))
        stack.enter_context(semaphore())
        stack.enter_context(reading())
        stack.enter_context(partitions("outbox", count=2, ttl=30))
        term = iter(leadership("sync", ttl=30))
        next(term)
        stack.callback(term.close)
        wanting = waiting(lambda **more: semaphore(units=2, fair=True, **more), SEMAPHORE)
        waiters.enter_context(wanting)
        waiters.enter_context(waiting(catalogue, RWLOCK))
        yield


SEMAPHORE, RWLOCK = "openai:acme~semaphore", "catalogue~rwlock"


def listed(*arguments):
    return json.loads(run("list", "--kind", "fenced", "--json", *arguments))["fenced"]


def titles(*arguments):
    return [(lease["key"], lease["role"], lease["slot"]) for lease in listed(*arguments)]


PERMITS = [("openai:acme", "permit", slot) for slot in range(3)]


def test_every_lease_is_listed_by_its_key_and_role(scene):
    assert sorted(titles("--held")) == sorted(
        [
            ("nightly", "lock", 0),
            ("catalogue", "reader", 1),
            ("sync", "leader", 0),
            ("outbox", "partition", 0),
            ("outbox", "partition", 1),
            ("outbox", "worker", 0),
            *PERMITS,
        ]
    )
    table = run("list", "--kind", "fenced")
    assert "~" not in table
    assert [line.split()[:3] for line in table.splitlines() if "permit" in line] == [
        ["openai:acme", "permit", str(slot)] for slot in range(3)
    ]


def test_waiters_for_permits_and_to_write_are_listed(scene):
    """A ticket's slot is no slot of a lease: it says how many permits, or which way in."""
    wanted = {lease["name"]: len(lease["waiting"]) for lease in listed() if lease["waiting"]}
    assert wanted == {SEMAPHORE: 1, RWLOCK: 1}
    assert titles("--blocked", "--key", "openai", "acme") == PERMITS
    assert {key for key, _, _ in titles("--blocked")} == {"catalogue", "openai:acme"}


def test_waiting_reader_is_listed_beside_the_writer():
    with ExitStack() as waiters, catalogue(), reader_waits(waiters):
        [writer] = fenced_leases(name=RWLOCK)
        assert (writer.title, len(writer.waiting)) == ("catalogue (writer)", 1)


@contextmanager
def reader_waits(waiters):
    waiters.enter_context(waiting(reading, RWLOCK))
    yield


def test_key_and_pattern_find_every_kind(scene):
    with fenced_lock("sync", ttl=30):
        assert sorted(titles("--key", "sync")) == [("sync", "leader", 0), ("sync", "lock", 0)]
        assert titles("--name", "openai:acme") == PERMITS
        assert titles("--name", "*~semaphore") == PERMITS
        assert titles("--name", "*acme") == PERMITS
        assert titles("--name", "open") == []


def test_release_takes_the_listed_name():
    with pytest.raises(LockLost), semaphore(units=2):
        second = fenced_leases()[1].token
        said = run("release", "openai:acme", "--slot", "1", "--yes")
        assert f"openai:acme (permit 1, token {second}) is released" in said
        assert [lease.slot for lease in fenced_leases()] == [0]
        with pytest.raises(CommandError, match="is not held: it can be granted as soon as"):
            run("release", "openai:acme", "--slot", "1", "--yes")


def test_ambiguous_release_names_the_candidates():
    with fenced_rwlock("a").write(ttl=30), fenced_semaphore("a", permits=1, ttl=30):
        with pytest.raises(CommandError, match="give one of these names: a~rwlock, a~semaphore"):
            run("release", "a", "--yes")
        with pytest.raises(LockLost), fenced_lock("a", ttl=30) as lock:
            assert f"a (slot 0, token {lock.token}) is released" in run("release", "a", "--yes")


def test_release_ends_a_held_permit_beside_an_ended_lock():
    with fenced_lock("a", ttl=30):
        pass
    with pytest.raises(LockLost), fenced_semaphore("a", permits=1, ttl=30) as permit:
        assert f"a (permit 0, token {permit.token}) is released" in run("release", "a", "--yes")


def test_monitor_shows_roles_and_one_queue_for_each_name(scene, admin_client):
    page = html(admin_client.get(PAGE))
    said = words(page)
    assert "~" not in said
    for text in ("openai:acme permit 2", "catalogue reader 1", "sync leader", "outbox worker 0"):
        assert text in said
    assert "permit · 1 waiting" in said
    assert "reader · 1 waiting" in said
    assert "catalogue reader 1" in words(html(admin_client.get(PAGE, {"q": "reader"})))


def test_admin_list_shows_roles_and_never_granted_slots(scene, admin_client):
    said = words(admin_client.get("/admin/django_dblock/fencedlock/").content.decode())
    assert "~" not in said
    assert "acme (permit 1) held" in said
    assert "sync (leader) held" in said
    assert "outbox (worker 1) expired never granted - -" in said


def test_gauge_counts_leases_and_waiters_by_kind(scene):
    registry = CollectorRegistry()
    registry.register(StateCollector())

    def value(kind, state):
        labels = {"using": "default", "kind": kind, "state": state}
        return registry.get_sample_value("dblock_leases", labels)

    assert {kind: value(kind, "held") for kind in ("fenced", *ROLES)} == {
        "fenced": 1, "semaphore": 3, "rwlock": 1, "leader": 1, "partition": 2, "worker": 1,
    }  # fmt: skip
    assert [value(kind, "wanted") for kind in ("fenced", "semaphore", "rwlock")] == [0, 1, 1]


def test_left_lease_is_named_by_its_role():
    with semaphore(units=2), pytest.raises(AssertionError, match=r"openai:acme \(permit 1\)"):
        assert_no_locks(within=0)


def test_signals_are_sent_by_the_imported_name():
    heard = []

    def hear(sender, kind, **_):
        heard.append((sender, kind))

    signals.lock_acquired.connect(hear)
    try:
        with semaphore(), catalogue(), partitions("outbox", count=1, ttl=30):
            pass
        with reading():
            pass
        for _ in leadership("sync", ttl=30):
            break
        with advisory_semaphore("pdf", permits=1):
            pass
    finally:
        signals.lock_acquired.disconnect(hear)
    assert heard == [
        (fenced_semaphore, "semaphore"),
        (fenced_rwlock, "rwlock"),
        (partitions, "worker"),
        (partitions, "partition"),
        (fenced_rwlock, "rwlock"),
        (leadership, "leader"),
        (advisory_semaphore, "advisory_semaphore"),
    ]


class TestLatches:
    """Shown are those that somebody waits for, with the parts that are done."""

    @pytest.fixture
    def closed(self):
        """A latch of three parts, one done, that this thread waits for."""
        imported = latch("import", 7, parties=3)
        imported.count_down("a")
        attempt = imported._attempt(60)
        queueing.until_queued(attempt)
        queueing.stay_queued()
        yield imported
        attempt.close()

    def shown(self, *arguments):
        return json.loads(run("list", "--json", *arguments))["latches"]

    def test_latch_that_somebody_waits_for_is_listed(self, closed):
        [found] = self.shown()
        assert (found["name"], found["parts"], len(found["waiting"])) == ("import:7", 1, 1)
        assert 0 <= found["latest"] < 60
        [line] = [line for line in run("list").splitlines() if line.startswith("import:7")]
        assert line.split()[:2] == ["import:7", "1"]
        for filters in (
            ["--key", "import", "int:7"],
            ["--name", "imp*"],
            ["--blocked"],
            ["--held"],
        ):
            assert [each["name"] for each in self.shown(*filters)] == ["import:7"], filters
        assert len(self.shown("--kind", "latches")) == 1
        assert self.shown("--key", "import") == self.shown("--name", "port") == []

    def test_latch_is_listed_only_while_somebody_waits(self):
        latch("export", parties=1).count_down("a")
        assert self.shown() == []
        attempt = latch("import", parties=1)._attempt(60)
        queueing.until_queued(attempt)
        queueing.stay_queued()
        [found] = self.shown()
        assert (found["name"], found["parts"], found["latest"]) == ("import", 0, None)
        attempt.close()

    def test_latch_of_another_namespace_is_left_out(self, closed, settings):
        settings.DBLOCK_NAMESPACE = lambda: "acme"
        assert self.shown() == []
        assert len(self.shown("--all-namespaces")) == 1

    def test_latch_is_on_the_monitor(self, closed, admin_client):
        said = words(html(admin_client.get(PAGE)))
        assert "import:7 1 waiting 1" in said
        assert "import:7" in words(html(admin_client.get(PAGE, {"q": "import"})))
        assert "import:7" not in words(html(admin_client.get(PAGE, {"q": "export"})))

    def test_parts_are_in_the_admin(self, closed, admin_client, settings):
        closed.count_down("b")
        latch("export", parties=1).count_down("c")
        lists = "/admin/django_dblock/latchpart/"

        def said(**query):
            return words(admin_client.get(lists, query).content.decode())

        assert "export c" in said()
        assert "import:7 a" in said(q="imp 7")
        assert "import:7 b" in said(q="imp 7")
        assert "export" not in said(q="imp 7")
        assert "import:7 b" in said(q="b")
        part = LatchPart.objects.get(part="b")
        page = words(admin_client.get(f"{lists}{part.pk}/change/").content.decode())
        assert "Latch: import:7 Part: b Done at:" in page
        assert "Save" not in page

    def test_admin_shows_the_parts_of_the_namespace(self, closed, client, settings):
        person = get_user_model().objects.create_user("ann", is_staff=True)
        person.user_permissions.add(Permission.objects.get(codename="view_latchpart"))
        client.force_login(person)
        for namespace, shown in (("", True), ("acme", False)):
            settings.DBLOCK_NAMESPACE = lambda namespace=namespace: namespace
            page = words(client.get("/admin/django_dblock/latchpart/").content.decode())
            assert ("import:7" in page) is shown

    def test_gauge_counts_latches_and_waiters(self, closed):
        registry = CollectorRegistry()
        registry.register(StateCollector())
        attempt = closed._attempt(60)
        queueing.until_queued(attempt)
        queueing.stay_queued()
        labels = [{"using": "default", "state": state} for state in ("closed", "wanted")]
        counts = [registry.get_sample_value("dblock_latches", each) for each in labels]
        attempt.close()
        assert counts == [1, 2]

    def test_wait_sends_the_signals_of_a_lock(self):
        heard = []

        def hear(signal, sender, kind, name, waited, **_):
            heard.append((signal, sender, kind, name, waited >= 0))

        imported = latch("import", 7, parties=1)
        for signal in (signals.lock_acquired, signals.lock_timeout):
            signal.connect(hear)
        try:
            with pytest.raises(LockTimeout):
                imported.wait(timeout=0)
            imported.count_down("a")
            imported.wait(timeout=0)
        finally:
            for signal in (signals.lock_acquired, signals.lock_timeout):
                signal.disconnect(hear)
        assert heard == [
            (signals.lock_timeout, latch, "latch", "import:7", True),
            (signals.lock_acquired, latch, "latch", "import:7", True),
        ]


class TestJobs:
    """A job's key is no secret: its name and period are shown, and no other key."""

    SHOWN = "once_per:reports:nightly:day:"

    def test_job_in_lease_mode_is_listed_by_name(self, admin_client):
        seen = {}

        @once_per("day", key=("reports", "nightly"), mode="lease")
        def report(period, handle):
            [seen["request"]] = json.loads(run("list", "--json"))["idempotency"]
            seen["period"] = period.label
            seen["admin"] = words(
                admin_client.get("/admin/django_dblock/idempotencykey/").content.decode()
            )

        report()
        assert seen["request"]["key"] == f"{self.SHOWN}{seen['period']}"
        assert f"{self.SHOWN}{seen['period']} run_once" in seen["admin"]

    def test_job_in_atomic_mode_is_listed_by_its_lock(self):
        seen = []

        @once_per("day", key=("reports", "nightly"))
        def report(period):
            seen.extend(json.loads(run("list", "--json", "--kind", "advisory"))["advisory"])

        report()
        assert seen[0]["name"].startswith("idempotency:once:once_per:reports:")

    @pytest.mark.parametrize(
        ("scope", "key"),
        [("once", "order:7#d1"), ("once", "once_per:a"), ("user:7", "once_per:a#d1")],
    )
    def test_every_other_key_is_masked(self, scope, key):
        assert shown_key(scope, key) == masked(key)
