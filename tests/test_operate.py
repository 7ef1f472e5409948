"""Ending a backend: the one that was seen, and no other."""

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
    def test_a_holder_so_that_the_next_has_the_lock(self, observer):
        with process(hold) as holder:
            holder.receive()
            [lock] = inspect.advisory_locks()
            assert terminate_backend(lock.pid, backend_start=lock.backend_start) is True
            with advisory_lock("inventory", "sku-1", timeout=30):
                pass
            assert is_gone(observer, lock.pid)

    def test_a_waiter(self, holding, connect, observer):
        waiter = connect()
        waiter.pgconn.send_query(LOCK.encode())
        observe.until_blocked(observer)
        assert terminate_backend(pid_of(waiter)) is True
        observe.until(lambda: is_gone(observer, pid_of(waiter)), "the waiter is gone")
        assert is_alive(holding)

    def test_without_a_begin_whoever_has_the_number(self, holding, observer):
        assert terminate_backend(pid_of(holding)) is True
        observe.until(lambda: is_gone(observer, pid_of(holding)), "the holder is gone")

    def test_it_is_written_down(self, holding, caplog):
        pid = pid_of(holding)
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            terminate_backend(pid, by="ann")
        [record] = caplog.records
        assert (record.name, record.levelname) == ("django_dblock.audit", "WARNING")
        assert (record.by, record.pid, record.using) == ("ann", pid, "default")
        assert record.backend_user == connection.settings_dict["USER"]
        assert record.getMessage().startswith(f"dblock: ann ended backend {pid} (")

    def test_by_the_role_where_nobody_is_named(self, holding, caplog):
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            terminate_backend(pid_of(holding))
        assert caplog.records[0].by == f"database role {connection.settings_dict['USER']}"


class TestNoOther:
    @pytest.mark.parametrize("direction", [-1, 1])
    def test_a_recycled_pid_is_another_connection(self, direction, holding, observer, caplog):
        [began] = observer.execute(STARTED, [pid_of(holding)]).fetchone()
        other = began + direction * timedelta(microseconds=1)
        assert terminate_backend(pid_of(holding), backend_start=other) is False
        assert is_alive(holding)
        assert caplog.records == []
        assert terminate_backend(pid_of(holding), backend_start=began) is True

    def test_one_that_ended_in_between_is_not_written_down(self, rival, monkeypatch, caplog):
        told_none = sql.TERMINATE.replace("pg_terminate_backend(backend.pid)", "false")
        monkeypatch.setattr(sql, "TERMINATE", told_none)
        rival.execute(LOCK)
        assert terminate_backend(pid_of(rival)) is False
        assert caplog.records == []

    def test_one_without_a_lock(self, rival):
        assert terminate_backend(pid_of(rival)) is False
        assert is_alive(rival)

    def test_one_whose_lock_is_over(self, holding):
        holding.execute("SELECT pg_advisory_unlock(1)")
        assert terminate_backend(pid_of(holding)) is False
        assert is_alive(holding)

    def test_one_with_a_lock_in_another_database(self, holding):
        assert terminate_backend(pid_of(holding), using="other") is False
        assert is_alive(holding)

    def test_one_with_a_lock_on_a_row_only(self, rival):
        rival.execute("BEGIN; LOCK TABLE django_dblock_fencedlock IN EXCLUSIVE MODE")
        assert terminate_backend(pid_of(rival)) is False
        rival.execute("ROLLBACK")

    def test_ones_own(self):
        with advisory_lock("a"):
            pid = connection.connection.info.backend_pid
            assert terminate_backend(pid) is False

    def test_nobody(self):
        assert terminate_backend(os.getpid()) is False

    @pytest.mark.parametrize("pid", [0, -1, 2**31])
    def test_no_number_of_a_backend(self, pid, statements):
        with statements() as sent, pytest.raises(ValueError, match="not the number of a backend"):
            terminate_backend(pid)
        assert len(sent) == 0

    def test_a_text_is_no_number(self, statements):
        with statements() as sent, pytest.raises(TypeError, match="pid must be an int, not str"):
            terminate_backend("31337")
        assert len(sent) == 0

    def test_another_engine(self):
        with pytest.raises(UnsupportedDatabase):
            terminate_backend(7, using="sqlite")


class TestTrapPictureOfTheTransaction:
    """In a transaction, ``pg_stat_activity`` shows the picture that was looked at first."""

    PICTURE = "SELECT count(*) FROM pg_stat_activity"

    def test_one_that_came_later_is_seen(self, connect):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(self.PICTURE)
            late = connect()
            late.execute(LOCK)
            assert terminate_backend(pid_of(late)) is True

    def test_its_negative_twin_sees_what_was(self, connect):
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
    def test_another_roles_backend(self, holding, plain_role):
        with pytest.raises(TerminationRefused, match="was not ended") as raised:
            terminate_backend(pid_of(holding))
        refused = raised.value.__cause__.__cause__
        assert isinstance(refused, psycopg.errors.InsufficientPrivilege)
        assert raised.value.reason in str(refused), "in the server's words"
        assert (raised.value.pid, raised.value.using) == (pid_of(holding), "default")
        assert is_alive(holding)

    def test_a_begin_that_is_hidden_can_not_be_compared(self, holding, observer, plain_role):
        observer.execute("GRANT pg_signal_backend TO dblock_plain")
        [began] = observer.execute(STARTED, [pid_of(holding)]).fetchone()
        with pytest.raises(TerminationRefused, match="whether that is still the same connection"):
            terminate_backend(pid_of(holding), backend_start=began)
        assert is_alive(holding)

    def test_ones_own_roles(self, connect, observer, plain_role):
        own = connect(user=plain_role)
        own.execute(LOCK)
        [began] = observer.execute(STARTED, [pid_of(own)]).fetchone()
        assert terminate_backend(pid_of(own), backend_start=began) is True
        observe.until(lambda: is_gone(observer, pid_of(own)), "it is gone")
        own.close()

    def test_the_callers_transaction_is_usable_after_a_refusal(self, holding, plain_role):
        with transaction.atomic():
            with pytest.raises(TerminationRefused):
                terminate_backend(pid_of(holding))
            assert terminate_backend(os.getpid()) is False

    def test_other_errors_are_not_refusals(self, monkeypatch, holding):
        monkeypatch.setattr(sql, "TERMINATE", "SELECT 1/0")
        with pytest.raises(DataError):
            terminate_backend(pid_of(holding))
        monkeypatch.setattr(sql, "TERMINATE", "SELECT FROM nowhere")
        with pytest.raises(Exception, match="nowhere") as raised:
            terminate_backend(pid_of(holding))
        assert isinstance(raised.value.__cause__, psycopg.errors.UndefinedTable)


def test_the_round_trips(statements, holding):
    """One statement, and the block around it."""
    with statements() as sent:
        terminate_backend(pid_of(holding))
    assert [query["sql"].split()[0] for query in sent] == ["BEGIN", "SELECT", "COMMIT"]
