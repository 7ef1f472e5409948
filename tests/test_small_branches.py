"""Branches that other tests reach only in other processes, or not at all."""

import threading
from contextlib import nullcontext
from dataclasses import fields
from io import StringIO
from types import SimpleNamespace

import psycopg
import pytest
from django.apps import apps
from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DataError, InternalError, OperationalError, connection, transaction

from django_dblock import (
    FencedLock,
    IdempotencyKey,
    advisory_semaphore,
    fenced_lock,
    lock_rows,
    signals,
)
from django_dblock.cli import list as list_command
from django_dblock.cli import purge
from django_dblock.core import logging
from django_dblock.core.simple_query import send
from django_dblock.idempotency import store as requests
from django_dblock.inspect import (
    BlockingSession,
    FencedLease,
    LockWaits,
    _count_kept,
    advisory_locks,
)
from django_dblock.monitor import views
from django_dblock.versioning import save
from tests.app.models import Product
from tests.helpers import observe

pytestmark = pytest.mark.django_db(transaction=True)


def blank(kind, **changes):
    return kind(**{each.name: None for each in fields(kind)} | changes)


def test_admin_shows_kept_requests():
    page = admin.site._registry[IdempotencyKey]
    assert page.time_left(SimpleNamespace(state_now="done", left=None, kept_for=None)) == "kept"
    assert apps.get_app_config("django_dblock").module.admin._seconds(None) == ""


def test_admin_search_needs_all_words():
    for name in ("nightly a", "nightly b"):
        with fenced_lock(name, ttl=60):
            pass
    page = admin.site._registry[FencedLock]
    [found] = page.indexed_matches(FencedLock.objects.all(), ["nightly", "b"])
    assert [lease.name for lease in found] == ["nightly b"]


def test_semaphore_in_an_aborted_transaction_raises_its_error():
    with pytest.raises(InternalError, match="aborted"), transaction.atomic():
        with pytest.raises(DataError):
            send(connection, "SELECT 1 / %(zero)s", parameters={"zero": 0})
        with advisory_semaphore("pdf", permits=2, timeout=0):
            pytest.fail("it can't be entered")


@pytest.mark.parametrize("timeout", [None, 0])
def test_free_rows_are_locked_whatever_the_timeout(timeout):
    Product.objects.create(name="a")
    with transaction.atomic():
        assert len(lock_rows(Product.objects.all(), timeout=timeout)) == 1


def test_app_follows_the_settings_of_slow_locks(settings):
    settings.DBLOCK_SLOW_WAIT = 1
    signals.lock_acquired.disconnect(logging._waited)  # as before the app was there
    apps.get_app_config("django_dblock").ready()
    assert signals.lock_acquired.receivers


def test_list_on_a_standby_notes_it(monkeypatch):
    waits = LockWaits([], [], [], standby=True)
    monkeypatch.setattr(list_command, "lock_waits", lambda *_, **__: waits)
    out = StringIO()
    call_command("dblock", "list", "--kind", "advisory", stdout=out)
    assert "this server is a standby" in out.getvalue()


def test_list_shows_what_a_blocker_waits_for():
    session = blank(
        BlockingSession, pid=7, program="web", keeps=1, holds=("a",), waits_for="a row of b",
        blocked_by=(8, 0), user="u", client="c", state="active", query="q", hidden=False,
    )  # fmt: skip
    assert "a row of b behind 8, prepared" in list_command.blocker_row(session)


def test_purge_fails_for_an_unreadable_table(monkeypatch):
    def done(_, job, options):
        options["notes"].append("leases are not purged.")
        return 0

    monkeypatch.setattr(purge, "_done", done)
    with pytest.raises(CommandError, match="leases are not purged"):
        call_command("dblock", "purge")


def test_wrong_setting_is_an_error_of_one_line(monkeypatch):
    def fail(*_):
        raise ImproperlyConfigured("a wrong\nsetting")

    monkeypatch.setattr(list_command, "run", fail)
    with pytest.raises(CommandError, match=r"^a wrong.setting$") as found:
        call_command("dblock", "list", stdout=StringIO())
    assert len(str(found.value).splitlines()) == 1


def test_body_of_a_request_is_read_as_bytes():
    assert requests._bytes(None) == b""
    assert requests._bytes(memoryview(b"a")) == b"a"
    assert requests._bytes("\\x61") == b"a"


def test_shared_waiter_queues_behind_an_exclusive_one(connect, observer):
    holder, first, second = connect(), connect(), connect()
    holder.execute("BEGIN")
    holder.execute("SELECT pg_advisory_xact_lock_shared(1)")
    waiting = [
        threading.Thread(target=one.execute, args=[statement])
        for one, statement in (
            (first, "SELECT pg_advisory_xact_lock(1)"),
            (second, "SELECT pg_advisory_xact_lock_shared(1)"),
        )
    ]
    try:
        for number, thread in enumerate(waiting, 1):
            thread.start()
            observe.until(
                lambda number=number: sum(not lock.granted for lock in advisory_locks()) == number,
                "it waits",
            )
        [last] = [lock for lock in advisory_locks() if lock.shared and not lock.granted]
        assert last.place == 2
    finally:
        holder.execute("COMMIT")
    for thread in waiting:
        thread.join()


def test_lease_name_has_its_kind():
    kinds = [blank(FencedLease, name=name).kind for name in ("a", "a~semaphore", "a~unknown")]
    assert kinds == ["fenced", "semaphore", "fenced"]


def test_other_serialization_failures_are_not_a_moved_row():
    error = OperationalError()
    error.__cause__ = psycopg.errors.SerializationFailure("could not serialize access")
    assert not save._was_moved(error, "default")


def test_monitor_reports_a_backend_that_ended(monkeypatch):
    told = []
    monkeypatch.setattr(views, "terminate_backend", lambda *_, **__: False)
    monkeypatch.setattr(views.messages, "warning", lambda _, text: told.append(text))
    request = SimpleNamespace(user=SimpleNamespace(get_username=lambda: "ann"))
    views._terminate(request, 7, None, None, blocking=False)
    assert "Backend 7 has already ended" in told[0]


def test_waiter_on_two_paths_counts_once():
    assert _count_kept(1, {1: [2, 3], 2: [4], 3: [4]}) == 3


@pytest.mark.parametrize("inside", [False, True])
def test_moved_row_is_a_conflict_only_outside_a_transaction(inside):
    error = OperationalError()
    error.__cause__ = psycopg.errors.SerializationFailure("moved to another partition")
    with transaction.atomic() if inside else nullcontext():
        assert save._was_moved(error, "default") is not inside


def test_other_errors_are_not_a_moved_row():
    assert not save._was_moved(OperationalError(), "default")
