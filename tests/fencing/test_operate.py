"""Operators: release a lease by force, purge rows that are no longer used."""

import logging

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, transaction

from django_dblock import (
    FencedLock,
    LockLost,
    OpenTransaction,
    fenced_lock,
    force_release,
    purge_fenced_locks,
)
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.operations import force_release_grant
from django_dblock.models import FencedTicket
from tests.fencing.helpers import NAME, row

pytestmark = pytest.mark.django_db(transaction=True)


class TestForce:
    def test_old_holder_is_fenced_off(self, statements):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30) as old:
            with statements() as sent:
                assert force_release(NAME) is True
            assert len(sent) == 1
            with fenced_lock(NAME, ttl=30) as new:
                assert new.token > old.token + 1
                with pytest.raises(LockLost), old.guard():
                    pass
                assert old.release() is False
                new.renew()

    def test_force_release_advances_the_token_at_once(self):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30) as lock:
            force_release(NAME)
            assert row().token > lock.token
            lock.renew()

    def test_force_release_of_a_free_name_is_false(self):
        assert force_release(NAME) is False
        with fenced_lock(NAME, ttl=30):
            pass
        assert force_release(NAME) is False

    def test_lock_delay_counts_from_the_force_release(self):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, lock_delay=60) as lock:
            force_release(NAME)
            with pytest.raises(TimeoutError), fenced_lock(NAME, ttl=30):
                pass
            lock.renew()

    def test_open_transaction_is_refused(self):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            force_release(NAME)

    @pytest.mark.parametrize(
        ("by", "who"), [({}, "database role postgres"), ({"by": "ann"}, "ann")], ids=["role", "by"]
    )
    def test_force_release_is_audited_only_if_done(self, by, who, caplog):
        with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
            with pytest.raises(LockLost), fenced_lock(NAME, ttl=30) as lock:
                force_release(NAME, **by)
                lock.renew()
            assert force_release(NAME, **by) is False
        [record] = [each for each in caplog.records if each.name == "django_dblock.audit"]
        assert (record.levelname, record.by, record.lock) == ("WARNING", who, NAME)
        assert (record.slot, record.using) == (0, "default")
        assert record.getMessage() == (
            f"dblock: {who} released {NAME} on 'default' by force: its holder is fenced off"
        )


class TestPatience:
    """How long a guarded transaction is waited for."""

    @pytest.fixture
    def guarded(self, rival):
        with fenced_lock(NAME, ttl=30):
            rival.execute("BEGIN; SELECT FROM django_dblock_fencedlock FOR KEY SHARE")
            yield row().token
            rival.execute("ROLLBACK")

    def timeout(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            return cursor.fetchone()[0]

    def test_patience_limits_the_wait_for_a_guard(self, guarded):
        with pytest.raises(OperationalError, match="lock timeout"):
            force_release_grant(NAME, 0, guarded, patience=0.02)
        assert row().token == guarded
        assert self.timeout() == "0", "it counted for that statement"

    def test_no_patience_uses_the_sessions_lock_timeout(self, guarded):
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '20ms'")
        with pytest.raises(OperationalError, match="lock timeout"):
            force_release_grant(NAME, 0, guarded)
        assert self.timeout() == "20ms"
        connection.close()

    def test_patience_is_accepted_without_a_guard(self):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30) as lock:
            assert force_release_grant(NAME, 0, lock.token, patience=5) is True
            lock.renew()


def age(seconds):
    """As if the row had been made and left so long ago."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_dblock_fencedlock SET token = token - %s::bigint * 1000,"
            " expires_at = expires_at - %s * interval '1 second'",
            [seconds, seconds],
        )


class TestPurge:
    def test_only_idle_rows_are_purged(self):
        with fenced_lock("idle", ttl=30):
            pass
        age(40 * 86_400)
        with fenced_lock("recent", ttl=30):
            pass
        with fenced_lock("held", ttl=30):
            assert purge_fenced_locks() == 1
            assert set(FencedLock.objects.values_list("name", flat=True)) == {"recent", "held"}

    def test_token_never_repeats_after_a_purge(self):
        with fenced_lock(NAME, ttl=30):
            pass
        age(7200)
        old = row().token
        assert purge_fenced_locks(idle=3600) == 1
        with fenced_lock(NAME, ttl=30) as lock:
            assert lock.token > old

    def test_token_ahead_of_the_clock_keeps_the_row(self):
        """A new row would begin below it."""
        with fenced_lock(NAME, ttl=30):
            pass
        age(7200)
        FencedLock.objects.update(token=2**60)
        assert purge_fenced_locks(idle=3600) == 0

    def test_locked_row_is_skipped(self, rival):
        with fenced_lock(NAME, ttl=30):
            pass
        age(7200)
        rival.execute("BEGIN; SELECT FROM django_dblock_fencedlock FOR KEY SHARE")
        assert purge_fenced_locks(idle=3600) == 0
        rival.execute("ROLLBACK")

    def test_purge_commits_in_batches(self, monkeypatch, statements):
        from django_dblock.fencing import operations as operate

        monkeypatch.setattr(operate, "BATCH", 2)
        for number in range(5):
            with fenced_lock(number, ttl=30):
                pass
        age(7200)
        with statements() as sent:
            assert purge_fenced_locks(idle=3600) == 5
        assert len(sent) == 4, "the tickets, and three batches"

    def test_running_lock_delay_keeps_the_row(self):
        with fenced_lock(NAME, ttl=30):
            pass
        age(7200)
        FencedLock.objects.update(lock_delay="03:00:00")
        assert purge_fenced_locks(idle=3600) == 0

    def test_tickets_of_dead_waiters_are_purged(self):
        FencedTicket.objects.create(name=NAME, owner="", expires_at="2000-01-01T00:00Z")
        FencedTicket.objects.create(name=NAME, owner="", expires_at="2200-01-01T00:00Z")
        purge_fenced_locks()
        assert FencedTicket.objects.count() == 1

    @pytest.mark.parametrize("idle", [0, 3599, float("nan")])
    def test_idle_time_below_an_hour_is_refused(self, idle):
        with pytest.raises(ValueError, match="after an hour at the earliest"):
            purge_fenced_locks(idle=idle)


class TestMigration:
    def test_models_and_the_migrations_agree(self):
        call_command("makemigrations", "django_dblock", check=True, dry_run=True, verbosity=0)

    def test_tables_have_their_storage_parameters(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relpersistence, array_to_string(reloptions, ' ') FROM pg_class"
                " WHERE relname IN ('django_dblock_fencedlock', 'django_dblock_fencedticket')"
                " ORDER BY relname"
            )
            (lock, lock_options), (ticket, _) = cursor.fetchall()
            cursor.execute(
                "SELECT DISTINCT collation_name FROM information_schema.columns"
                " WHERE table_name LIKE 'django_dblock_fenced%%' AND column_name = 'name'"
            )
            assert cursor.fetchall() == [("C",)]
        assert (lock, ticket) == ("p", "p"), "both logged: a standby refuses to look at others"
        assert "fillfactor=50" in lock_options
        assert "autovacuum_vacuum_scale_factor=0.02" in lock_options

    def test_migration_is_reversible(self):
        """On PostgreSQL, and on an engine that knows nothing of storage parameters."""
        for alias in ("default", "sqlite"):
            call_command("migrate", "django_dblock", "zero", database=alias, verbosity=0)
            call_command("migrate", "django_dblock", database=alias, verbosity=0)
        with fenced_lock(NAME, ttl=30):
            assert heartbeat.of("default")._due

    test_migration_is_reversible = pytest.mark.django_db(
        transaction=True, databases=["default", "sqlite"]
    )(test_migration_is_reversible)
