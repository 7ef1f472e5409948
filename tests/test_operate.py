"""Ending a backend: only the one that was shown."""

import logging
import os
from datetime import timedelta

import psycopg
import pytest
from django.db import DataError, connection, transaction

from django_dblock import (
    TerminationRefused,
    UnsupportedDatabase,
    advisory_lock,
    inspect,
    terminate_backend,
)
from django_dblock.sql import advisory as sql
from tests.helpers import observe
from tests.helpers.operating import LOCK, STARTED, is_alive, is_gone, pid_of
from tests.helpers.processes import process

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def hold(channel):
    with advisory_lock("inventory", "sku-1"):
        channel.send("held")
        channel.receive()


class TestEnds:
    def test_ending_the_holder_grants_the_next_waiter(self, observer):
        with process(hold) as holder:
            holder.receive()
            [lock] = inspect.advisory_locks()
            assert terminate_backend(lock.pid, backend_start=lock.backend_start) is True
            with advisory_lock("inventory", "sku-1", timeout=30):
                pass
            observe.until(lambda: is_gone(observer, lock.pid), "it is gone")

    def test_waiter_can_be_ended(self, holding, connect, observer):
        waiter = connect()
        waiter.pgconn.send_query(LOCK.encode())
        observe.until_blocked(observer)
        assert terminate_backend(pid_of(waiter)) is True
        observe.until(lambda: is_gone(observer, pid_of(waiter)), "the waiter is gone")
        assert is_alive(holding)

    def test_without_backend_start_the_pid_decides(self, holding, observer):
        assert terminate_backend(pid_of(holding)) is True
        observe.until(lambda: is_gone(observer, pid_of(holding)), "the holder is gone")

    def test_termination_is_audited(self, holding, caplog):
        pid = pid_of(holding)
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            terminate_backend(pid, by="ann")
        [record] = caplog.records
        assert (record.name, record.levelname) == ("django_dblock.audit", "WARNING")
        assert (record.by, record.pid, record.using) == ("ann", pid, "default")
        assert record.backend_user == connection.settings_dict["USER"]
        assert record.getMessage().startswith(f"dblock: ann ended backend {pid} (")

    def test_audit_defaults_to_the_role(self, holding, caplog):
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            terminate_backend(pid_of(holding))
        assert caplog.records[0].by == f"database role {connection.settings_dict['USER']}"


class TestNoOther:
    @pytest.mark.parametrize("direction", [-1, 1])
    def test_recycled_pid_is_not_ended(self, direction, holding, observer, caplog):
        [began] = observer.execute(STARTED, [pid_of(holding)]).fetchone()
        other = began + direction * timedelta(microseconds=1)
        assert terminate_backend(pid_of(holding), backend_start=other) is False
        assert is_alive(holding)
        assert caplog.records == []
        assert terminate_backend(pid_of(holding), backend_start=began) is True

    def test_ended_backend_is_not_audited(self, rival, monkeypatch, caplog):
        told_none = sql.TERMINATE.replace("pg_terminate_backend(backend.pid)", "false")
        monkeypatch.setattr(sql, "TERMINATE", told_none)
        rival.execute(LOCK)
        assert terminate_backend(pid_of(rival)) is False
        assert caplog.records == []

    def test_backend_without_a_lock_stays(self, rival):
        assert terminate_backend(pid_of(rival)) is False
        assert is_alive(rival)

    def test_backend_whose_lock_has_ended_stays(self, holding):
        holding.execute("SELECT pg_advisory_unlock(1)")
        assert terminate_backend(pid_of(holding)) is False
        assert is_alive(holding)

    def test_backend_of_another_database_stays(self, holding):
        assert terminate_backend(pid_of(holding), using="other") is False
        assert is_alive(holding)

    def test_backend_with_only_a_table_lock_stays(self, rival):
        rival.execute("BEGIN; LOCK TABLE django_dblock_fencedlock IN EXCLUSIVE MODE")
        assert terminate_backend(pid_of(rival)) is False
        rival.execute("ROLLBACK")

    def test_own_backend_stays(self):
        with advisory_lock("a"):
            pid = connection.connection.info.backend_pid
            assert terminate_backend(pid) is False

    def test_unknown_pid_is_false(self):
        assert terminate_backend(os.getpid()) is False

    @pytest.mark.parametrize("pid", [0, -1, 2**31])
    def test_impossible_pid_is_refused(self, pid, statements):
        with statements() as sent, pytest.raises(ValueError, match="not the number of a backend"):
            terminate_backend(pid)
        assert len(sent) == 0

    def test_text_pid_is_refused(self, statements):
        with statements() as sent, pytest.raises(TypeError, match="pid must be an int, not str"):
            terminate_backend("31337")
        assert len(sent) == 0

    def test_other_engine_is_refused(self):
        with pytest.raises(UnsupportedDatabase):
            terminate_backend(7, using="sqlite")


class TestTrapPictureOfTheTransaction:
    """In a transaction, ``pg_stat_activity`` shows the picture that was looked at first."""

    PICTURE = "SELECT count(*) FROM pg_stat_activity"

    def test_newer_backend_is_seen(self, connect):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(self.PICTURE)
            late = connect()
            late.execute(LOCK)
            assert terminate_backend(pid_of(late)) is True

    def test_negative_twin_sees_a_cached_snapshot(self, connect):
        """So one that is gone would be seen, too, with the number that is another's by now."""
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(self.PICTURE)
            late = connect()
            late.execute(LOCK)
            stale = sql.TERMINATE.replace("pg_stat_clear_snapshot()::text", "''")
            cursor.execute(stale, {"pid": pid_of(late), "backend_start": None, "blocking": False})
            assert cursor.fetchall() == []
        assert is_alive(late)
        late.close()


class TestPrivileges:
    def test_backend_of_another_role_is_refused(self, holding, plain_role):
        with pytest.raises(TerminationRefused, match="was not ended") as raised:
            terminate_backend(pid_of(holding))
        refused = raised.value.__cause__.__cause__
        assert isinstance(refused, psycopg.errors.InsufficientPrivilege)
        assert raised.value.reason in str(refused), "in the server's words"
        assert (raised.value.pid, raised.value.using) == (pid_of(holding), "default")
        assert is_alive(holding)

    def test_hidden_backend_start_is_refused(self, holding, observer, plain_role):
        observer.execute("GRANT pg_signal_backend TO dblock_plain")
        [began] = observer.execute(STARTED, [pid_of(holding)]).fetchone()
        with pytest.raises(TerminationRefused, match="whether that is still the same connection"):
            terminate_backend(pid_of(holding), backend_start=began)
        assert is_alive(holding)

    def test_backend_of_the_same_role_is_ended(self, connect, observer, plain_role):
        own = connect(user=plain_role)
        own.execute(LOCK)
        [began] = observer.execute(STARTED, [pid_of(own)]).fetchone()
        assert terminate_backend(pid_of(own), backend_start=began) is True
        observe.until(lambda: is_gone(observer, pid_of(own)), "it is gone")
        own.close()

    def test_refusal_leaves_transaction_usable(self, holding, plain_role):
        with transaction.atomic():
            with pytest.raises(TerminationRefused):
                terminate_backend(pid_of(holding))
            assert terminate_backend(os.getpid()) is False

    def test_other_errors_propagate(self, monkeypatch, holding):
        monkeypatch.setattr(sql, "TERMINATE", "SELECT 1/0")
        with pytest.raises(DataError):
            terminate_backend(pid_of(holding))
        monkeypatch.setattr(sql, "TERMINATE", "SELECT FROM nowhere")
        with pytest.raises(Exception, match="nowhere") as raised:
            terminate_backend(pid_of(holding))
        assert isinstance(raised.value.__cause__, psycopg.errors.UndefinedTable)


def test_termination_is_one_statement_in_a_block(statements, holding):
    """One statement, and the block around it."""
    with statements() as sent:
        terminate_backend(pid_of(holding))
    assert [query["sql"].split()[0] for query in sent] == ["BEGIN", "SELECT", "COMMIT"]
