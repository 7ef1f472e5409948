"""The scrape of a real registry, read by the client's own parser."""

import os
import subprocess
import sys
import threading

import pytest
from django.db import OperationalError, connection, connections
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from django_dblock import FencedLock, IdempotencyKey, advisory_lock, fenced_lock, run_once, signals
from django_dblock.contrib import prometheus, prometheus_state
from django_dblock.contrib.receivers import WAIT_BUCKETS
from tests.contrib import events
from tests.doctor.helpers import leading
from tests.helpers import servers

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    prometheus.instrument(registry=registry)
    yield registry
    prometheus.uninstrument()


def scraped(registry):
    """Each sample by its name and labels."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lock(**labels):
    return sorted({"kind": "advisory", "key": "inventory", "using": "default", **labels}.items())


@pytest.fixture
def waits():
    """What ``lock_acquired`` says of each wait for the lock on the inventory, in seconds."""
    told = []

    def note(*, kind, keys, waited, **_):
        if kind == "advisory" and keys[0][0] == "inventory":
            told.append(waited)

    with_uid = "test_prometheus.waits"
    signals.lock_acquired.connect(note, weak=False, dispatch_uid=with_uid)
    yield told
    signals.lock_acquired.disconnect(dispatch_uid=with_uid)


def test_every_signal_is_in_a_scrape(registry, rival, observer, waits):
    events.everything(rival, observer)
    found = scraped(registry)

    def value(name, labels):
        return found[(name, *labels)]

    inventory, lease = lock(), lock(kind="fenced", key="nightly-sync")
    assert value("dblock_lock_acquire_seconds_count", inventory) == 3
    assert value("dblock_lock_acquire_seconds_count", lease) == 4
    assert value("dblock_lock_wait_seconds_count", lock(outcome="acquired")) == 3
    # How long the one wait lasts is the machine's affair: it may be shorter than any bucket.
    assert [bool(wait) for wait in waits] == [False, False, True]
    assert value("dblock_lock_wait_seconds_sum", lock(outcome="acquired")) == sum(waits)
    for limit in WAIT_BUCKETS:
        at_most = lock(outcome="acquired", le=repr(float(limit)))
        within = sum(wait <= limit for wait in waits)
        assert value("dblock_lock_wait_seconds_bucket", at_most) == within
    assert value("dblock_lock_wait_seconds_count", lock(outcome="timeout")) == 1
    assert value("dblock_lock_wait_seconds_count", lock(key="b", outcome="deadlock")) == 1
    assert value("dblock_lock_hold_seconds_count", lock(ended="committed")) == 2
    assert value("dblock_lock_hold_seconds_count", lock(ended="rolled_back")) == 1
    ends = {"kind": "fenced", "key": "nightly-sync"}
    assert value("dblock_lock_hold_seconds_count", lock(**ends, ended="released")) == 1
    assert value("dblock_lock_hold_seconds_count", lock(**ends, ended="lost")) == 3
    assert value("dblock_lock_failures_total", lock(error="LockTimeout")) == 1
    assert value("dblock_lock_failures_total", lock(key="b", error="LockDeadlock")) == 1
    assert value("dblock_lock_failures_total", lock(error="UnsafeIsolation")) == 1
    assert value("dblock_leases_lost_total", lock(**ends, reason="taken")) == 2
    assert value("dblock_leases_lost_total", lock(**ends, reason="expired")) == 1
    written = [("model", "app.account"), ("using", "default")]
    assert value("dblock_stale_writes_total", written) == 1
    assert value("dblock_stale_objects_total", [("model", "app.stock")]) == 1
    again = "tests.contrib.events.stale.<locals>.again"
    retried = [("error", "StaleObjects"), ("function", again)]
    assert value("dblock_conflict_retries_total", retried) == 1
    for outcome, mode in (
        ("executed", "atomic"),
        ("replayed", "atomic"),
        ("key_reused", "atomic"),
        ("executed", "lease"),
        ("taken_over", "lease"),
    ):
        labels = [("mode", mode), ("outcome", outcome), ("using", "default")]
        assert value("dblock_idempotent_requests_total", labels) == 1


def test_no_scrape_has_a_whole_key(registry, rival, observer):
    events.everything(rival, observer)
    text = generate_latest(registry).decode()
    assert "sku-" not in text


def test_instrument_twice_counts_once(registry):
    prometheus.instrument(registry=registry)
    prometheus.instrument()
    events.advisory()
    assert scraped(registry)[("dblock_lock_acquire_seconds_count", *lock())] == 2


def test_uninstrument_removes_receivers_and_metrics(registry):
    assert signals.lock_acquired.receivers
    prometheus.uninstrument()
    prometheus.uninstrument()
    assert not signals.lock_acquired.receivers
    events.advisory()
    assert scraped(registry) == {}
    prometheus.instrument(registry=registry)
    events.advisory()
    assert scraped(registry)[("dblock_lock_acquire_seconds_count", *lock())] == 2


def test_key_label_can_be_replaced():
    registry = CollectorRegistry()
    prometheus.instrument(registry=registry, key_label=lambda keys: keys[0][1])
    try:
        events.advisory()
        assert ("dblock_lock_acquire_seconds_count", *lock(key="sku-1")) in scraped(registry)
    finally:
        prometheus.uninstrument()


def test_threads_can_instrument_at_once():
    registry, start = CollectorRegistry(), threading.Barrier(8)

    def switch():
        start.wait()
        prometheus.instrument(registry=registry)

    threads = [threading.Thread(target=switch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(signals.lock_acquired.receivers) == 1
    finally:
        prometheus.uninstrument()


PREFORK = """
import os, sys
import django
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
django.setup()
from django_dblock import advisory_lock
from django_dblock.contrib import prometheus
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

prometheus.instrument()
for _ in range(2):
    prometheus._listening._mutex.acquire()  # as if another thread were switching just now
    if (child := os.fork()) == 0:
        prometheus.instrument()
        with advisory_lock("inventory", "sku-1"):
            pass
        os._exit(0)
    prometheus._listening._mutex.release()
    assert os.waitpid(child, 0)[1] == 0
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


@pytest.mark.processes
def test_multiprocess_workers_are_summed(tmp_path):
    """The client's multiprocess mode, switched on before the fork and once more after it."""
    result = subprocess.run(
        [sys.executable, "-c", PREFORK, connection.settings_dict["NAME"]],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(result.stdout)
        for sample in family.samples
    }
    assert found["dblock_lock_acquire_seconds_count"] == 2


class TestState:
    """What is locked at the moment of the scrape."""

    @pytest.fixture
    def state(self, statements):
        registry = CollectorRegistry()
        with statements() as sent:
            registry.register(prometheus.StateCollector())
        assert len(sent) == 0, "registering asks no database"
        return registry

    def test_gauges_show_locks_leases_and_requests(self, state, hold_lock, statements):
        hold_lock("inventory", "sku-1")

        def work(_):
            with fenced_lock("nightly-sync", ttl=30), statements() as sent:
                found.update(scraped(state))
            assert len(sent) == 4 * 4, "each with BEGIN, lock_timeout and ROLLBACK"

        found = {}
        run_once("a", work=work, mode="lease")

        def value(name, which, *more):
            return found[(name, *more, ("state", which), ("using", "default"))]

        assert value("dblock_advisory_locks", "held") == 1
        assert value("dblock_advisory_locks", "wanted") == 0
        assert value("dblock_leases", "held", ("kind", "fenced")) == 1
        assert value("dblock_leases", "held", ("kind", "leader")) == 0
        assert value("dblock_unfinished_requests", "leased") == 1

    def test_scrape_needs_no_tenant(self, state, settings):
        """A project may refuse to lock outside a tenant; nobody locks here."""
        settings.DBLOCK_NAMESPACE = lambda: 1 / 0
        assert "dblock_advisory_locks" in {name for name, *_ in scraped(state)}

    def test_gauges_show_zero(self, state):
        found = scraped(state)
        assert set(found.values()) == {0.0}
        assert (
            "dblock_leases",
            ("kind", "worker"),
            ("state", "delayed"),
            ("using", "default"),
        ) in found

    def test_scrape_survives_a_database_outage(self, state, monkeypatch, caplog):
        def fail(using):
            raise OperationalError("the server is gone")

        monkeypatch.setattr(prometheus_state, "advisory_locks", fail)
        assert scraped(state) == {}
        [record] = caplog.records
        assert record.name == "django_dblock.prometheus"
        assert "the server is gone" in record.getMessage()

    def test_scrape_lacks_only_the_gauges_of_a_locked_table(self, state, rival, caplog):
        rival.execute("BEGIN; LOCK TABLE django_dblock_fencedlock")
        names = {name for name, *_ in scraped(state)}
        rival.execute("ROLLBACK")
        assert "dblock_leases" not in names
        assert {"dblock_advisory_locks", "dblock_unfinished_requests"} <= names
        [record] = caplog.records
        assert f"backend {rival.info.backend_pid}" in record.getMessage()

    def test_scrape_lacks_only_the_gauges_without_a_right(
        self, state, plain_role, observer, caplog
    ):
        observer.execute("GRANT SELECT ON django_dblock_idempotencykey TO dblock_plain")
        try:
            names = {name for name, *_ in scraped(state)}
        finally:
            connection.close()
            observer.execute("DROP OWNED BY dblock_plain")
        assert names == {"dblock_advisory_locks", "dblock_unfinished_requests"}
        assert ["permission denied" in each.getMessage() for each in caplog.records] == [True] * 2

    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    def test_scrape_lacks_only_the_gauges_of_an_alias_that_is_down(self, state, settings, caplog):
        settings.DATABASE_ROUTERS = [AllButRequestsElsewhere()]
        with leading("other", PORT=servers.free_port()):
            names = {name for name, *_ in scraped(state)}
        assert names == {"dblock_advisory_locks", "dblock_unfinished_requests"}
        assert len(caplog.records) == 1, "it is tried once, as a connection may take long to fail"

    def test_scrape_lacks_only_the_gauges_of_another_engine(self, state, settings, caplog):
        settings.DATABASE_ROUTERS = [AllButRequestsElsewhere("sqlite")]
        names = {name for name, *_ in scraped(state)}
        assert names == {"dblock_advisory_locks", "dblock_unfinished_requests"}
        assert ["needs PostgreSQL" in each.getMessage() for each in caplog.records] == [True] * 2

    def test_thread_of_a_scrape_keeps_no_connection(self, state):
        left = []

        def scrape():
            scraped(state)
            left.append(connection.connection)

        thread = threading.Thread(target=scrape)
        thread.start()
        thread.join()
        assert left == [None]
        with advisory_lock("a"):
            scraped(state)
            assert connection.connection is not None

    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    def test_each_gauge_reads_its_routers_alias(self, state, settings):
        settings.DATABASE_ROUTERS = [LeasesElsewhere()]
        left = []

        def scrape():
            left.append(scraped(state))
            left.append([each.alias for each in connections.all() if each.connection])

        with fenced_lock("nightly-sync", ttl=30):
            thread = threading.Thread(target=scrape)
            thread.start()
            thread.join()
        found, still_open = left
        assert (
            found["dblock_leases", ("kind", "fenced"), ("state", "held"), ("using", "other")] == 1
        )
        assert ("dblock_advisory_locks", ("state", "held"), ("using", "default")) in found
        assert still_open == []


class AllButRequestsElsewhere:
    def __init__(self, alias="other"):
        self._alias = alias

    def db_for_write(self, model, **hints):
        return None if model is IdempotencyKey else self._alias


class LeasesElsewhere:
    def db_for_write(self, model, **hints):
        return "other" if model is FencedLock else None
