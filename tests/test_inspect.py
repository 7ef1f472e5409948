"""Inspection of advisory locks: holders and waiters."""

import threading

import pytest
from django.db import connection, connections, transaction

from django_dblock import UnsupportedDatabase, advisory_lock, advisory_locks
from django_dblock.inspect import advisory_locks as inspect_locks
from tests.helpers.locks import number, waiter_behind

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def test_nothing_locked_is_empty():
    assert inspect_locks() == []


def test_inspection_is_one_statement(statements):
    with statements() as sent:
        inspect_locks()
    assert len(sent) == 1


def test_holder_is_named():
    with advisory_lock("inventory", "sku-1"), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()
        [lock] = inspect_locks()
    assert lock.name == "inventory:sku-1"
    assert lock.key_id == number("inventory", "sku-1")
    assert lock.pid == pid
    assert (lock.granted, lock.shared, lock.blocked_by, lock.waiting) == (True, False, (), None)
    assert lock.application_name == "tests lock[inventory:sku-1]"
    assert lock.transaction_age >= 0
    assert lock.user == connection.settings_dict["USER"]
    assert lock.state == "active"
    assert "pg_locks" in lock.query
    assert not lock.hidden


def test_waiters_name_their_blockers(observer):
    with waiter_behind(observer):
        [holder, waiting] = inspect_locks()
    assert holder.granted
    assert not waiting.granted
    assert waiting.name == holder.name == "inventory:sku-1"
    assert waiting.blocked_by == (holder.pid,)
    assert waiting.waiting > 0


def test_several_locks_of_a_transaction_are_named():
    keys = [("account", 1), ("account", "ü"), ("x",)]
    with advisory_locks(keys, shared=True):
        found = {lock.key_id: lock.name for lock in inspect_locks() if lock.shared}
    assert found == {
        number("account", 1): "account:1",
        number("account", "ü"): f"account:?~{number('account', 'ü') & 0xFFFF:04x}",
        number("x"): "x",
    }


def test_labels_are_read_once_for_each_backend(monkeypatch):
    """Per backend, not per lock: the work grows with the locks, not with their square."""
    from django_dblock.core import application_name as labels

    read = []
    monkeypatch.setattr(labels, "read", lambda name, *_: read.append(name) or {})
    with advisory_locks([("k", n) for n in range(50)]):
        assert len(inspect_locks()) == 50
    assert len(read) == 1


def test_unlabelled_and_foreign_locks_are_unnamed(settings, rival):
    settings.DBLOCK_LABELS = "off"
    rival.execute("BEGIN; SELECT pg_advisory_xact_lock(-5), pg_advisory_xact_lock(1, -2)")
    with advisory_lock("a"):
        found = {(lock.name, lock.key_id, lock.classid, lock.objid) for lock in inspect_locks()}
    rival.execute("ROLLBACK")
    assert {(name, key_id) for name, key_id, _, _ in found} == {
        (None, number("a")), (None, -5), (None, None),
    }  # fmt: skip
    assert (None, None, 1, 2**32 - 2) in found


def test_other_databases_are_not_shown():
    with advisory_lock("a", using="other"):
        assert inspect_locks() == []
        assert [lock.name for lock in inspect_locks("other")] == ["a"]


def test_prepared_transaction_has_no_pid(primary, monkeypatch):
    alias = connections["other"]
    alias.close()
    for name, value in {"HOST": "127.0.0.1", "PORT": primary.port, "NAME": "postgres"}.items():
        monkeypatch.setitem(alias.settings_dict, name, value)
    with alias.cursor() as cursor:
        cursor.execute("BEGIN; SELECT pg_advisory_xact_lock(7); PREPARE TRANSACTION 'p'")
        try:
            [lock] = inspect_locks("other")
        finally:
            cursor.execute("ROLLBACK PREPARED 'p'")
    alias.close()
    assert (lock.pid, lock.key_id, lock.name, lock.hidden) == (None, 7, None, False)


def test_hidden_sessions_are_marked(observer, monkeypatch):
    """A role without pg_read_all_stats sees that a lock is held, not by which statement."""
    observer.execute("DROP ROLE IF EXISTS dblock_plain; CREATE ROLE dblock_plain LOGIN")
    held, seen = threading.Event(), threading.Event()

    def hold():
        with advisory_lock("secret"):
            held.set()
            seen.wait(90)
        connections.close_all()

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait(90)
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "USER", "dblock_plain")
    try:
        [lock] = inspect_locks()
    finally:
        seen.set()
        holding.join()
        connection.close()
        monkeypatch.undo()
        observer.execute("DROP ROLE dblock_plain")
    assert lock.hidden
    assert lock.key_id == number("secret")
    assert lock.transaction_age is None


def test_other_engine_is_refused():
    with pytest.raises(UnsupportedDatabase):
        inspect_locks("sqlite")


def test_inspection_works_in_a_transaction():
    with transaction.atomic(), advisory_lock("a"):
        assert len(inspect_locks()) == 1
