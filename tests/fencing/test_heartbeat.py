"""One thread renews all leases of the process, on a connection of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.db import OperationalError, connection, connections

from django_dblock import FencedLock, LockLost, fenced_lock, signals
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import _dedicated_class
from django_dblock.fencing import deadline
from django_dblock.fencing import heartbeat as beat
from django_dblock.fencing import heartbeat as module
from django_dblock.fencing.heartbeat import Heartbeat, Heartbeats, heartbeat
from tests.fencing.helpers import (
    NAME,
    beat_now,
    expire,
    is_expired,
    lost_at_exit,
    until_expired,
    until_renewed,
    updates,
)
from tests.helpers import observe
from tests.helpers.processes import process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


def heartbeats(observer):
    return observer.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'tests heartbeat'"
        " AND datname = current_database()"
    ).fetchall()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "dblock-heartbeat"]


def test_heartbeat_renews_on_a_connection_of_its_own(observer):
    with fenced_lock(NAME, ttl=3) as lock:
        for _ in range(4):
            until_renewed(observer)
        lock.check()
        assert len(heartbeats(observer)) == 1, "a connection of its own"
    assert is_expired(observer)


def test_lease_without_heartbeat_expires_and_calls_on_lost(observer):
    lost = []
    observe.until(lambda: not heartbeats(observer), "that of the test before is gone")
    block = fenced_lock(NAME, ttl=0.2, heartbeat=False, on_lost=lost.append)
    with pytest.raises(LockLost), block as lock:
        observe.until(lambda: lost == [lock], "on_lost is called")
        until_expired(observer)
        assert heartbeats(observer) == []


def test_long_transaction_does_not_delay_renewals(observer):
    """It has its own connection, so a long transaction of the holder matters nothing."""
    with fenced_lock(NAME, ttl=3) as lock:
        with lock.guard():
            for _ in range(2):
                until_renewed(observer)


def test_thousand_leases_are_renewed_in_one_statement(observer, monkeypatch):
    sent = []
    plain = beat.Line._ask
    monkeypatch.setattr(
        beat.Line, "_ask", lambda line, sql, leases, *more: sent.append(len(leases["names"]))
        or plain(line, sql, leases, *more),
    )  # fmt: skip
    with ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(fenced_lock("lease", number, ttl=6000))  # no beat by itself
        assert len(threads()) == 1
        beat_now()
        observe.until(lambda: sent, "a beat")
        observe.until(
            lambda: observer.execute(
                "SELECT count(*) FROM django_dblock_fencedlock WHERE renewed_at > acquired_at"
                " + interval '1 ms'"
            ).fetchone() == (1000,),
            "all are renewed",
        )  # fmt: skip
        assert sent == [1000]
        assert len(heartbeats(observer)) == 1


def test_two_hundred_renewals_in_one_statement_are_heap_only():
    from django_dblock.fencing.store import renewal_parameters
    from django_dblock.sql import fencing as sql

    with ExitStack() as stack:
        leases = [
            stack.enter_context(fenced_lock("lease", number, ttl=60, heartbeat=False))
            for number in range(200)
        ]
        wanted = renewal_parameters([(one.trust.place, one.token, 60) for one in leases])

        def beats(count):
            before = updates()
            with connection.cursor() as cursor:
                for _ in range(count):
                    cursor.execute(sql.RENEW, wanted)
                    assert all(ours for *_, ours in cursor.fetchall())
            return [now - then for now, then in zip(updates(), before, strict=True)]

        # A page filled with new rows to its half lacks the room for the line pointers of their
        # successors, so one row leaves each page at the second beat. It is over after that.
        observe.until(lambda: beats(5) == [1000, 1000], "five beats, heap-only")


def test_leases_of_different_ttls_share_beats():
    """One that is due takes along what will be due soon, and leaves the others."""
    with (
        fenced_lock("a", ttl=60) as a,
        fenced_lock("b", ttl=60) as b,
        fenced_lock("c", ttl=600) as c,
    ):
        now = beat.now()
        heartbeat.of("default")._due.update(
            {a.trust: now - 1, b.trust: now + 9, c.trust: now + 150}
        )
        batches = heartbeat.of("default")._batches()
        assert list(batches.values()) == [[a.trust, b.trust]]
        heartbeat.of("default")._due.update({a.trust: now + 9, b.trust: now + 9})
        assert heartbeat.of("default")._batches() == {}


def test_heartbeat_thread_ends_with_the_last_lease():
    with fenced_lock("a", ttl=60):
        with fenced_lock("b", ttl=60):
            assert len(threads()) == 1
        assert len(threads()) == 1
    observe.until(lambda: not threads(), "the thread ends")
    with fenced_lock("a", ttl=60):
        assert len(threads()) == 1


def test_consecutive_short_leases_share_a_thread(monkeypatch):
    """Starting one for each would cost more than all the rest of a lease."""
    started = []
    plain = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: started.append(thread) or plain(thread)
    )
    monkeypatch.setattr(module, "_MOMENT", 30.0)
    for number in range(20):
        with fenced_lock("short", number, ttl=600):
            pass
    assert len(started) == 1


def test_connected_heartbeat_ends_with_the_last_lease(observer, monkeypatch):
    monkeypatch.setattr(module, "_MOMENT", 600.0)
    with fenced_lock(NAME, ttl=600):
        beat_now()
        observe.until(lambda: heartbeats(observer), "it has a connection")
        observe.until(
            lambda: min(heartbeat.of("default")._due.values()) > beat.now(), "it has beaten"
        )
    observe.until(lambda: not threads(), "the thread ends")
    observe.until(lambda: not heartbeats(observer), "its backend ends")


def test_shorter_lease_is_renewed_while_a_longer_one_waits(observer, monkeypatch):
    monkeypatch.setattr(module, "_MOMENT", 600.0)
    with fenced_lock("long", ttl=600), fenced_lock(NAME, ttl=3):
        until_renewed(observer)


def test_late_renewal_does_not_undo_a_release(observer):
    """A beat that has been put together before the release and is sent after it does nothing."""
    with fenced_lock(NAME, ttl=60) as lock:
        line = beat.Line("default")
    assert line.renew([lock.trust], patience=5).gone == [lock.trust]
    line.close()
    assert is_expired(observer)


def test_released_lease_in_a_failed_beat_is_not_lost(monkeypatch, observer):
    """The release came between the beat's statement and its answer."""
    lost = []
    with fenced_lock(NAME, ttl=60, on_lost=lost.append) as lock:
        answer = module.Outcome([lock.trust], [])
        monkeypatch.setattr(beat.Line, "renew", lambda *_, **__: lock.release() and answer)
        Heartbeat("default")._beat(module._batch_of(lock.trust), [lock.trust])
    assert lost == []
    assert not lock.lost


@pytest.mark.parametrize("how", ["another token", "released by force"])
def test_loss_is_noticed_at_the_next_beat(how, observer):
    lost = []
    block = fenced_lock(NAME, ttl=60, on_lost=lost.append)
    with pytest.raises(LockLost, match="another holder was granted the lease"), block as lock:
        if how == "another token":
            FencedLock.objects.update(token=lock.token + 1)
        else:
            expire(observer)
        beat_now()
        observe.until(lambda: lost == [lock], "on_lost is called")
        assert lock.lost
        with pytest.raises(LockLost):
            lock.guard()


def test_failing_on_lost_does_not_stop_the_heartbeat(observer, caplog):
    def fail(_lock):
        raise ZeroDivisionError

    with fenced_lock("other", ttl=3):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=60, on_lost=fail) as lock:
            FencedLock.objects.filter(name=NAME).update(token=lock.token + 1)
            beat_now()
            observe.until(lambda: "on_lost of nightly-sync failed" in caplog.text, "the log says")
        until_renewed(observer, "other")


def test_terminated_backend_is_replaced(observer):
    """The beat fails, is tried again at once on a new connection, and the lease lives."""
    with fenced_lock(NAME, ttl=3) as lock:
        until_renewed(observer)
        [[pid]] = heartbeats(observer)
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        until_renewed(observer)
        assert heartbeats(observer) != [(pid,)]
        lock.check()


def test_backend_terminated_during_a_beat_is_replaced(observer, rival):
    """The table is locked, so the beat waits in the server; there its backend dies."""
    with fenced_lock(NAME, ttl=6) as lock:
        with rival.transaction():
            rival.execute("LOCK TABLE django_dblock_fencedlock IN ACCESS EXCLUSIVE MODE")
            [[pid]] = observe.until(
                lambda: observer.execute(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND application_name = 'tests heartbeat'"
                ).fetchall(),
                "the beat waits",
            )
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        until_renewed(observer)
        lock.check()


def test_silent_server_is_abandoned_at_the_deadline(observer, rival):
    """The beat stops waiting at the deadline, so that on_lost is called then, not ever later."""
    lost = []
    block = fenced_lock(NAME, ttl=1, on_lost=lost.append)
    with pytest.raises(LockLost, match="no renewal was confirmed"), block as lock:
        with rival.transaction():
            rival.execute("LOCK TABLE django_dblock_fencedlock IN ACCESS EXCLUSIVE MODE")
            observe.until(lambda: lost == [lock], "on_lost is called")
            assert lock.lost


def test_loss_is_noticed_while_the_heartbeat_connects(monkeypatch, caplog):
    """A server that can't be reached, or a pooler without a free connection, may take long."""
    lost = threading.Event()

    def leave(_):
        raise SystemExit

    noticed = []

    def connect(_):
        noticed.append(lost.wait(observe.LIMIT / 2))
        raise OperationalError("the server can't be reached")

    monkeypatch.setattr(_dedicated_class(), "ensure_connection", connect, raising=False)
    with (
        lost_at_exit(fenced_lock("first", ttl=2, on_lost=leave)),
        lost_at_exit(fenced_lock(NAME, ttl=3, on_lost=lambda _: lost.set())),
    ):
        beat_now()
        observe.until(lambda: noticed, "the beat ends")
    assert noticed[0], "also after another lease's on_lost has left"
    assert "A receiver or on_lost of a lost lease failed" in caplog.text


def test_loss_is_noticed_after_the_machine_has_slept(observer, monkeypatch):
    """A wait of Python's does not count the time meanwhile; the clock of the trust does."""
    lost = []
    slept = [0.0]
    for each in (deadline, module):
        monkeypatch.setattr(each, "now", lambda: monotonic() + slept[0])
    with lost_at_exit(fenced_lock(NAME, ttl=3600, on_lost=lost.append)) as lock:
        beat_now()
        observe.until(lambda: heartbeat.of("default")._line, "it has a connection")
        until_asleep()
        slept[0] = 7200.0
        observe.until(lambda: lost == [lock], "on_lost is called", limit=60)


def until_asleep():
    own = heartbeat.of("default")
    observe.until(lambda: own._wakes > module.now() + 1, "the heartbeat sleeps")
    with own._changed:
        """It has given the mutex back."""


def test_release_by_garbage_collection_does_not_end_the_heartbeat():
    """The collection may run in the heartbeat's thread, which looks for the next beat."""

    class Collecting:
        @property
        def remaining(self):
            own._due.popitem()
            return 60.0

    own = Heartbeat("default")
    own._due = {Collecting(): None, Collecting(): None}
    assert 59 < own._next() - beat.now() <= 60
    assert own._due == {}
    assert own._next() <= beat.now()


def test_abandoned_beat_leaves_no_backend(observer, rival):
    """Else each further beat would add one to the queue for the table."""
    line = beat.Line("default")
    with fenced_lock(NAME, ttl=60, heartbeat=False) as lock, rival.transaction():
        rival.execute("LOCK TABLE django_dblock_fencedlock IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TimeoutError, match="silent"):
            line.renew([lock.trust], patience=2)
        observe.until(lambda: not waits_for_a_table(observer), "the backend has ended", limit=30)


def test_negative_twin_without_cancellation_a_backend_stays(observer, rival, monkeypatch):
    """As with a libpq before 17, whose cancellation would wait without a limit."""
    monkeypatch.setattr(beat.capabilities, "has_cancel_safe", lambda: False)
    line = beat.Line("default")
    with fenced_lock(NAME, ttl=60, heartbeat=False) as lock, rival.transaction():
        rival.execute("LOCK TABLE django_dblock_fencedlock IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TimeoutError, match="silent"):
            line.renew([lock.trust], patience=2)
        assert waits_for_a_table(observer)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_silent_database_does_not_delay_renewals_in_another(connect, observer):
    """Neither alias' leases depend on the other's server."""
    silent = connect("other")
    with fenced_lock("a", ttl=60, using="other") as other, fenced_lock("b", ttl=3) as lock:
        with silent.transaction():
            silent.execute("LOCK TABLE django_dblock_fencedlock IN ACCESS EXCLUSIVE MODE")
            beat_now()
            observe.until(lambda: waits_for_a_table(observer), "the beat waits")
            until_renewed(observer, "b")
            until_renewed(observer, "b")
            lock.check()
        other.check()


def waits_for_a_table(observer):
    return observer.execute(
        "SELECT true FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
    ).fetchone()


def test_locked_row_does_not_delay_other_renewals(rival, observer):
    with fenced_lock("a", ttl=3) as first, fenced_lock("b", ttl=3):
        with rival.transaction():
            rival.execute("SELECT FROM django_dblock_fencedlock WHERE name = 'a' FOR UPDATE")
            until_renewed(observer, "b")
            assert not first.lost, "its row is there, and it still has time"
        until_renewed(observer, "a")


def test_unconfirmed_commit_does_not_renew(monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def unreplicated(_driver):
        yield ["canceling wait"]

    with fenced_lock(NAME, ttl=60) as lock:
        monkeypatch.setattr(beat, "unreplicated", unreplicated)
        before = lock.expires_at
        line = beat.Line("default")
        with pytest.raises(TimeoutError, match="canceling wait"):
            line.renew([lock.trust], patience=5)
        assert lock.expires_at == before


def test_failed_thread_start_grants_nothing(monkeypatch, observer):
    def fail(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            fenced_lock(NAME, ttl=30).__enter__()
    assert is_expired(observer)
    heartbeat.of("default")._thread = None


def test_leases_of_many_threads_share_one_heartbeat(observer):
    """Many threads, each its own leases; one heartbeat for all."""
    failures = []
    seen = []

    def work(number):
        try:
            for turn in range(5):
                with fenced_lock("storm", number, turn, ttl=30) as lock:
                    seen.append(len(threads()))
                    until = time.monotonic() + 0.02
                    while time.monotonic() < until:
                        lock.check()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)
        finally:
            connections.close_all()

    workers = [threading.Thread(target=work, args=[number]) for number in range(16)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        beat_now()
        workers[0].join(0.02)
    assert failures == []
    assert max(seen) <= 4, "one, and those that are just ending"


def test_signals_report_grant_timeout_loss_and_release(observer):
    heard = []

    def hear(signal, sender, **data):
        heard.append((signal, data))

    every = (signals.lock_acquired, signals.lock_released, signals.lock_lost, signals.lock_timeout)
    for one in every:
        one.connect(hear)
    try:
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30) as lock:
            with pytest.raises(TimeoutError), fenced_lock(NAME, ttl=30):
                pass
            FencedLock.objects.update(token=lock.token + 1)
    finally:
        for one in every:
            one.disconnect(hear)
    assert [signal for signal, _ in heard] == [
        signals.lock_acquired, signals.lock_timeout, signals.lock_lost, signals.lock_released,
    ]  # fmt: skip
    facts = {"kind": "fenced", "keys": ((NAME,),), "name": NAME, "using": "default"}
    for _, data in heard:
        assert facts.items() <= data.items()
    acquired, timeout, lost, released = (data for _, data in heard)
    assert acquired["token"] == lost["token"] == released["token"] == lock.token
    assert acquired["waited"] >= 0
    assert timeout["waited"] >= 0
    assert "another holder" in lost["reason"]
    assert released["lost"] is True
    assert released["held"] >= 0


@pytest.mark.processes
class TestFork:
    def test_forked_child_leaves_the_parents_lease_alone(self, observer):
        with process(fork_while_holding) as holder:
            assert holder.receive() == {
                "threads": 0,
                "lost": True,
                "reason": "it belongs to the process that this one was forked from",
                "released": False,
                "guard": "LockLost",
                "own": "held",
            }
            until_renewed(observer)
            until_renewed(observer)
            holder.send("end")
            assert holder.receive() == "still held"

    def test_forked_child_keeps_the_parents_connection_open(self):
        own = Heartbeats()
        own.of("default")._line = object()
        parents = own._by_alias
        own._leave_to_parent()
        assert own.of("default")._line is None
        assert parents in module._of_parents, "kept: closing them would end the parent's"
        module._of_parents.remove(parents)

    def test_gunicorn_master_and_workers_renew_their_own_leases(self, tmp_path):
        """A lease taken while the master loads the app is the master's; workers have their own."""
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE": connection.settings_dict["NAME"],
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        master = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-b",
                f"unix:{tmp_path}/socket", "tests.fencing.prefork:application",
            ],
            env=environment, cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            observe.until(
                lambda: (
                    master.poll() is not None
                    or FencedLock.objects.filter(name__startswith="worker:").count() == 2
                ),
                "both workers have their lease",
            )
            names = FencedLock.objects.values_list("name", flat=True)
            assert len(names) == 3, "the master's and the workers'"
            for name in names:
                until_renewed_row(name)
                until_renewed_row(name)
        finally:
            master.send_signal(signal.SIGTERM)
            output, _ = master.communicate(timeout=120)
        assert "lost" not in output
        assert "Traceback" not in output


def until_renewed_row(name):
    before = FencedLock.objects.get(name=name).renewed_at
    observe.until(
        lambda: FencedLock.objects.get(name=name).renewed_at > before, f"{name} is renewed"
    )


def fork_while_holding(channel):
    with fenced_lock(NAME, ttl=3) as lock:
        observe.until(lambda: heartbeat.of("default")._line, "the heartbeat has its connection")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, repr(in_the_child(lock)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        channel.send(eval(os.read(reading, 10_000)))
        channel.receive()
        lock.check()
        return "still held"


def in_the_child(lock):
    connections["default"].connection = None  # Django's own is the parent's, too
    try:
        lock.guard()
        guard = "no error"
    except LockLost:
        guard = "LockLost"
    found = {
        "threads": len(threads()),
        "lost": lock.lost,
        "reason": lock.trust.reason,
        "released": lock.release(),
        "guard": guard,
    }
    with fenced_lock("of the child", ttl=30) as own:
        own.check()
        return {**found, "own": "held"}
