"""The lease protocol, point by point: statements, rows, holders."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from django.db import OperationalError, ProgrammingError, connection, transaction

from django_dblock import (
    FencedLock,
    LockLost,
    LockTimeout,
    NotReplicated,
    OpenTransaction,
    StandbyDatabase,
    UnsupportedDatabase,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
)
from django_dblock.core.application_name import named
from django_dblock.fencing import store as table
from tests.fencing.helpers import (
    NAME,
    SEEN,
    Always,
    attempt,
    count_up,
    expire,
    is_expired,
    row,
    started,
    updates,
    wal_written,
)
from tests.helpers import observe
from tests.helpers.processes import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]


class TestBudget:
    def test_acquire_renew_release_are_one_commit_each(self, statements):
        """In autocommit: nothing opens a transaction, so each statement commits by itself."""
        with statements() as sent, fenced_lock(NAME, ttl=30) as lock:
            assert len(sent) == 1
            lock.renew()
            assert len(sent) == 2
        assert len(sent) == 3
        assert not any("BEGIN" in query["sql"] for query in sent)

    def test_known_name_uses_the_short_statement(self, statements):
        with statements() as sent:
            for _ in range(3):
                with fenced_lock(NAME, ttl=30):
                    pass
        assert len(sent) == 6
        acquired = [len(query["sql"]) for query in sent][::2]
        assert acquired[1] == acquired[2] < acquired[0]

    def test_repeated_failed_try_is_one_statement(self, statements):
        counts = []
        with fenced_lock(NAME, ttl=30):
            for _ in range(3):
                with statements() as sent:
                    with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
                        pass
                counts.append(len(sent))
        assert counts == [2, 1, 1]

    def test_check_sends_nothing(self, statements):
        with fenced_lock(NAME, ttl=30) as lock, statements() as sent:
            lock.check()
            assert not lock.lost
            assert 0 < lock.remaining <= 30
        assert len(sent) == 0

    def test_name_that_was_never_acquired_here_is_one_statement(self, statements):
        """Whether the row exists or not; another process may have made it."""
        tokens = []
        for _ in range(2):
            table._granted.clear()
            with statements() as sent, fenced_lock(NAME, ttl=30) as lock:
                assert len(sent) == 1
                tokens.append(lock.token)
        assert row().grants == 2
        assert tokens[0] < tokens[1]

    @pytest.mark.parametrize("seen", SEEN)
    def test_failed_try_writes_no_wal(self, seen, observer, monkeypatch):
        monkeypatch.setattr(table, "_granted", Always(seen))

        def polls():
            with wal_written(observer) as written:
                for _ in range(20):
                    with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
                        pass
            return written[0]

        with fenced_lock(NAME, ttl=30):
            # Others may write meanwhile (a checkpoint, a vacuum); we would in each round.
            observe.until(lambda: polls() == 0, "twenty polls without a byte of WAL")

    def test_negative_twin_upsert_writes_on_failed_tries(self, observer, rival):
        upsert = (
            "INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at,"
            " renewed_at, expires_at, lock_delay, grants, metadata) VALUES ('nightly-sync', 0, 1,"
            " '', now(), now(), now(), '0', 1, '{}') ON CONFLICT (name, slot) DO UPDATE SET"
            " token = 2 WHERE django_dblock_fencedlock.expires_at < clock_timestamp()"
        )
        with fenced_lock(NAME, ttl=30), wal_written(observer) as written:
            for _ in range(20):
                rival.execute(upsert)
        assert written[0] >= 20 * 50

    def test_all_updates_are_heap_only(self):
        with fenced_lock(NAME, ttl=30):
            pass
        before = updates()
        for _ in range(60):
            with fenced_lock(NAME, ttl=30) as lock:
                lock.renew()
        every, hot = (now - then for now, then in zip(updates(), before, strict=True))
        assert every == hot >= 180, "those of other sessions may be counted late"

    def test_expiry_is_not_indexed(self):
        with connection.cursor() as cursor:
            found = connection.introspection.get_constraints(cursor, FencedLock._meta.db_table)
        keys = [entry for entry in found.values() if entry["index"] or entry["unique"]]
        columns = {column for entry in keys for column in entry["columns"]}
        assert columns == {"id", "name", "slot"}


class TestOneHolderAtATime:
    def test_refusal_names_the_holder(self):
        with fenced_lock(NAME, ttl=30) as lock:
            with pytest.raises(LockTimeout) as caught, fenced_lock(NAME, ttl=30):
                pytest.fail("two holders")
        error = caught.value
        assert error.key == (NAME,)
        assert f"token {lock.token}" in error.holder
        assert f"token {lock.token}" in str(error)
        assert error.timeout == 0

    @pytest.mark.parametrize("seen", SEEN)
    def test_expired_lease_is_free(self, seen, observer, monkeypatch):
        monkeypatch.setattr(table, "_granted", Always(seen))
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as old:
            expire(observer)
            with fenced_lock(NAME, ttl=30) as new:
                assert new.token > old.token

    @pytest.mark.processes
    def test_many_processes_on_one_key_lose_no_count(self):
        """Each adds one to a number that it reads and writes back; none is lost."""
        FencedLock.objects.all().delete()
        assert race(4, count_up, 25) == [None] * 4
        assert row("counted").grants == 100
        assert row("count").metadata == {"value": 100}

    def test_row_has_owner_and_metadata(self):
        with fenced_lock("inventory", 7, ttl=30, metadata={"job": "count"}, lock_delay=2) as lock:
            found = row("inventory:7")
            assert found.owner.split(":")[1].isdigit()
            assert found.metadata == {"job": "count"} == lock.metadata
            assert found.lock_delay.total_seconds() == 2
            assert found.token == lock.token
            assert found.expires_at == lock.expires_at
            assert found.grants == 1
            assert str(found) == f"inventory:7 (token {lock.token})"
            assert f"token={lock.token}" in repr(lock)
            assert (lock.key, lock.name, lock.using) == (("inventory", 7), "inventory:7", "default")

    def test_concurrent_insert_is_retried_at_once(self, monkeypatch):
        """What the insert race looks like: no row at all."""
        plain, results = table.acquire, [None]
        monkeypatch.setattr(table, "acquire", lambda *a: results.pop() if results else plain(*a))
        one = attempt(timeout=0)
        assert one.once() is None
        assert one.delay == 0
        assert one.once().grant.token == row().token

    def test_lease_inserted_meanwhile_is_not_taken(self, rival, observer):
        """The statement waits for the other INSERT, and leaves the row that is then there alone."""
        found = acquired_beside_an_insert(rival, observer)
        assert (found.token, found.owner) == (7, "the other")
        assert row().grants == 1

    def test_negative_twin_upsert_takes_the_lease_inserted_meanwhile(
        self, rival, observer, monkeypatch
    ):
        condition = "lease.id = (SELECT id FROM free)"
        assert condition in table.sql.TAKE_OR_INSERT
        upsert = table.sql.TAKE_OR_INSERT.replace(condition, "true")
        monkeypatch.setattr(table.sql, "TAKE_OR_INSERT", upsert)
        assert acquired_beside_an_insert(rival, observer).token > 7
        assert row().grants == 2

    @pytest.mark.processes
    def test_insert_race_has_one_winner(self):
        """Of those who make the row at the same time, one has it, and none fails otherwise."""
        for number in range(3):
            assert sorted(race(4, try_once, f"new-{number}")) == ["held", *["refused"] * 3]


def acquired_beside_an_insert(rival, observer):
    """Acquire while another session has inserted the row as held, and commits then."""
    rival.execute(
        "BEGIN; INSERT INTO django_dblock_fencedlock (name, slot, token, owner, acquired_at,"
        " renewed_at, expires_at, lock_delay, grants, metadata)"
        f" VALUES ('{NAME}', 0, 7, 'the other', now(), now(), now() + '1 h', '0', 1, '{{}}')"
    )
    outcomes = []
    place, wish = table.Place(named((NAME,)), NAME, "default"), table.Wish(30, 0, "{}", False)
    asking = started(lambda: outcomes.append(table.acquire(place, wish)))
    observe.until(
        lambda: observer.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ).fetchone(),
        "the INSERT waits",
    )
    rival.execute("COMMIT")
    asking.join()
    [outcome] = outcomes
    return outcome


def try_once(_number, name):
    lock = fenced_lock(name, ttl=60, heartbeat=False)
    try:
        lock.__enter__()
    except LockTimeout:
        return "refused"
    return "held"


class TestTokens:
    def test_each_token_is_greater_and_not_behind_the_clock(self, observer):
        tokens = []
        for _ in range(20):
            with fenced_lock(NAME, ttl=30) as lock:
                tokens.append(lock.token)
        assert tokens == sorted(set(tokens))
        [clock] = observer.execute(
            "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
        ).fetchone()
        assert clock - 60_000 < tokens[0] <= clock

    @pytest.mark.parametrize("seen", SEEN)
    def test_token_ahead_of_the_clock_is_incremented(self, seen, monkeypatch):
        monkeypatch.setattr(table, "_granted", Always(seen))
        with fenced_lock(NAME, ttl=30):
            pass
        FencedLock.objects.update(token=2**60)
        with fenced_lock(NAME, ttl=30) as lock:
            assert lock.token == 2**60 + 1

    @pytest.mark.processes
    @pytest.mark.parametrize("seen", SEEN)
    def test_grants_are_in_the_order_of_their_tokens(self, seen):
        """Worked out before the row is locked, one in seven is out of order."""
        found = [pair for grants in race(4, granted, 50, seen) for pair in grants]
        assert len(found) == 200
        by_grant = [token for _, token in sorted(found)]
        assert by_grant == sorted(set(by_grant))


def granted(_number, times, seen):
    table._granted = Always(seen)  # in a process of its own
    found = []
    for _ in range(times):
        with fenced_lock(NAME, ttl=30, timeout=60) as lock:
            found.append((row().grants, lock.token))
    return found


class TestRenew:
    def test_renew_moves_the_expiry_and_keeps_the_token(self):
        with fenced_lock(NAME, ttl=30) as lock:
            first = lock.expires_at
            lock.renew(ttl=60)
            assert (row().expires_at - first).total_seconds() > 29
            assert row().expires_at == lock.expires_at
            assert row().token == lock.token
            assert lock.remaining > 31

    def test_renew_never_shortens_the_lease(self):
        """So answers may overtake each other, and each is true."""
        with fenced_lock(NAME, ttl=30) as lock:
            first = lock.expires_at
            lock.renew(ttl=1)
            assert lock.expires_at == row().expires_at == first
            assert lock.remaining > 20

    def test_identity_is_the_token_not_the_owner(self):
        """The same host, process and thread under a new token is another holder."""
        with pytest.raises(LockLost, match="another holder"), fenced_lock(NAME, ttl=30) as lock:
            FencedLock.objects.update(token=lock.token + 1)
            lock.renew()
        assert lock.lost

    def test_renewal_ignores_the_owner(self):
        with fenced_lock(NAME, ttl=30) as lock:
            FencedLock.objects.update(owner="elsewhere:1:main")
            lock.renew()

    def test_expired_lease_is_not_renewed(self, observer):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
            expire(observer)
            lock.renew()
        assert is_expired(observer)

    def test_briefly_locked_row_is_renewed_afterwards(self, rival, monkeypatch):
        plain, tries = table.renew, []
        monkeypatch.setattr(table, "renew", lambda *a: tries.append(plain(*a)) or tries[-1])
        with fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
            rival.execute("BEGIN; SELECT FROM django_dblock_fencedlock FOR UPDATE")
            first = lock.expires_at
            renewing = started(lock.renew)
            observe.until(lambda: tries, "a try has met the locked row")
            assert lock.expires_at == first
            rival.execute("COMMIT")
            renewing.join()
            assert lock.expires_at > first

    @pytest.mark.parametrize("ttl", [0, -1, True, "1", float("nan"), 1e12])
    def test_wrong_ttl_is_refused(self, ttl):
        with fenced_lock(NAME, ttl=30) as lock:
            with pytest.raises(ValueError, match="ttl="):
                lock.renew(ttl=ttl)
        with pytest.raises(ValueError, match="seconds above 0 and up to 2147484"):
            fenced_lock(NAME, ttl=ttl)

    def test_uncallable_on_lost_is_refused(self):
        with pytest.raises(TypeError, match="on_lost must be callable, not int"):
            fenced_lock(NAME, ttl=30, on_lost=3)


class TestRelease:
    def test_release_frees_at_once_and_keeps_the_row(self, observer):
        with fenced_lock(NAME, ttl=30) as lock:
            assert lock.release() is True
            assert is_expired(observer)
            with pytest.raises(LockLost, match="it was released"):
                lock.check()
            assert not lock.lost
            assert lock.remaining == 0
            assert lock.release() is False
            with fenced_lock(NAME, ttl=30) as second:
                assert second.token > lock.token

    def test_renewal_in_flight_does_not_undo_a_release(self, observer):
        """The statement of the heartbeat arrives after the release."""
        with fenced_lock(NAME, ttl=30) as lock:
            place, token = lock.trust.place, lock.token
        assert table.renew(place, token, 30) == (None, False)
        assert is_expired(observer)

    def test_renewal_in_flight_does_not_undo_hold_at_least(self, observer):
        with fenced_lock(NAME, ttl=30, hold_at_least=60) as lock:
            place, token = lock.trust.place, lock.token
        assert table.renew(place, token, 30) == (None, False)

    def test_release_of_a_taken_over_lease_changes_nothing(self, observer):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as first:
            expire(observer)
            with fenced_lock(NAME, ttl=30) as second:
                assert first.release() is False
                assert not is_expired(observer)
                second.renew()

    def test_error_of_the_block_takes_precedence_over_loss(self, observer):
        with pytest.raises(ZeroDivisionError), fenced_lock(NAME, ttl=30) as lock:
            expire(observer)
            FencedLock.objects.update(token=lock.token + 1)
            raise ZeroDivisionError
        assert lock.lost

    def test_dropped_connection_is_replaced_to_release(self, observer):
        """So that the lease comes back at once, and not when its ttl is over."""
        with fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
            before = connection.connection.info.backend_pid
            terminate(observer)
        assert is_expired(observer)
        assert not lock.lost
        assert connection.connection.info.backend_pid != before

    def test_dead_connections_of_djangos_pool_are_replaced_to_release(self, observer, monkeypatch):
        """After a restart of the server, each connection of the pool is dead."""
        connection.close()
        options = {"min_size": 3, "max_size": 3}
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", options)
        try:
            connection.pool.open()
            connection.pool.wait()
            with fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
                observer.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            assert is_expired(observer)
            assert not lock.lost
        finally:
            connection.close()
            connection.close_pool()

    def test_release_on_a_new_connection_spares_a_later_grant(self, observer):
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
            observer.execute("UPDATE django_dblock_fencedlock SET token = token + 1")
            terminate(observer)
        assert lock.lost
        assert not is_expired(observer)

    def test_other_errors_of_a_release_are_not_retried(self, statements, observer):
        try:
            with pytest.raises(ProgrammingError), statements() as sent:
                with fenced_lock(NAME, ttl=30, heartbeat=False):
                    observer.execute("ALTER TABLE django_dblock_fencedlock RENAME TO elsewhere")
        finally:
            observer.execute("ALTER TABLE elsewhere RENAME TO django_dblock_fencedlock")
        assert [query["sql"].split()[0] for query in sent] == ["WITH", "UPDATE"]

    def test_release_error_does_not_hide_the_blocks_error(self, unreachable, caplog):
        with pytest.raises(ZeroDivisionError), fenced_lock(NAME, ttl=30, heartbeat=False):
            unreachable()
            raise ZeroDivisionError
        connection.close()
        assert "was not released, it expires" in caplog.text

    def test_refusal_of_a_standby_does_not_hide_the_blocks_error(self, standby_now, caplog):
        with pytest.raises(ZeroDivisionError), fenced_lock(NAME, ttl=30, heartbeat=False):
            standby_now()
            raise ZeroDivisionError
        assert "was not released, it expires" in caplog.text

    def test_refusal_of_a_standby_is_raised_on_leaving(self, standby_now):
        with pytest.raises(StandbyDatabase) as caught:
            with fenced_lock(NAME, ttl=30, heartbeat=False):
                standby_now()
        assert "was not released" in caught.value.__notes__[0]

    def test_error_of_the_release_is_raised(self, unreachable):
        with pytest.raises(OperationalError), fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
            unreachable()
        connection.close()
        assert not lock.lost

    def test_release_that_cannot_connect_ends_the_renewals(self, unreachable):
        with pytest.raises(OperationalError), fenced_lock(NAME, ttl=30) as lock:
            unreachable()
            connection.close()
            with pytest.raises(OperationalError):
                lock.release()
            with pytest.raises(LockLost, match="it was released"):
                lock.check()
        connection.close()

    def test_hold_at_least_delays_the_next_grant(self, observer):
        with fenced_lock(NAME, ttl=30, hold_at_least=60):
            pass
        assert 55 < row().lock_delay.total_seconds() <= 60
        with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
            pass
        observer.execute("UPDATE django_dblock_fencedlock SET lock_delay = '0'")
        with fenced_lock(NAME, ttl=30):
            pass

    def test_hold_at_least_counts_from_the_grant(self, observer):
        with fenced_lock(NAME, ttl=30, hold_at_least=1):
            observer.execute(
                "UPDATE django_dblock_fencedlock SET acquired_at = acquired_at - interval '2 s'"
            )
        with fenced_lock(NAME, ttl=30):
            pass


@pytest.fixture
def unreachable(observer, monkeypatch):
    """The server drops the connection, and no other can be made."""

    def cut():
        terminate(observer)
        monkeypatch.setitem(connection.settings_dict, "PORT", "1")

    with monkeypatch.context():
        yield cut
    monkeypatch.undo()


@pytest.fixture
def standby_now(monkeypatch):
    """From its call on, the server of the alias looks like a standby."""

    def demote():
        monkeypatch.setattr(table.sql, "IS_STANDBY", "SELECT true")
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")

    yield demote
    connection.close()


def terminate(observer):
    observer.execute(
        "SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid]
    )


class TestLockDelay:
    def test_expired_lock_is_not_granted_during_lock_delay(self, observer):
        with pytest.raises(LockLost):
            with fenced_lock(NAME, ttl=30, lock_delay=60, heartbeat=False) as lock:
                expire(observer)
                with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
                    pass
                lock.renew()
        assert row().lock_delay.total_seconds() == 60, "leaving the block doesn't end the delay"
        with pytest.raises(LockTimeout), fenced_lock(NAME, ttl=30):
            pass

    @pytest.mark.parametrize(
        "block",
        [
            fenced_semaphore(NAME, permits=1, ttl=30, lock_delay=60),
            fenced_semaphore(NAME, permits=2, units=2, ttl=30, lock_delay=60),
            fenced_rwlock(NAME).read(ttl=30, lock_delay=60),
            fenced_rwlock(NAME).write(ttl=30, lock_delay=60),
        ],
        ids=["permit", "permits", "read", "write"],
    )
    def test_lost_slot_is_not_granted_during_lock_delay(self, block):
        with pytest.raises(LockLost), block as lease:
            lease.trust.lose("as the test wants it")
        held = FencedLock.objects.filter(grants__gt=0)
        assert held
        for each in held:
            assert each.lock_delay.total_seconds() == 60
        held.update(lock_delay="0")
        with block:
            pass
        assert not FencedLock.objects.filter(lock_delay__gt="0").exists(), "released, not lost"

    def test_released_lock_has_no_delay(self):
        with fenced_lock(NAME, ttl=30, lock_delay=60):
            pass
        with fenced_lock(NAME, ttl=30):
            pass


class TestOpenTransaction:
    def test_acquire_is_refused(self, statements):
        with transaction.atomic(), statements() as sent:
            refused = pytest.raises(OpenTransaction, match="be taken inside an open transaction")
            with refused as caught:
                fenced_lock(NAME, ttl=30).__enter__()
            assert isinstance(caught.value, RuntimeError), "as the error of atomic(durable=True)"
            assert len(sent) == 0
            assert not FencedLock.objects.exists()

    def test_autocommit_off_is_refused(self):
        transaction.set_autocommit(False)
        try:
            with pytest.raises(OpenTransaction):
                fenced_lock(NAME, ttl=30).__enter__()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    def test_renew_and_release_are_refused(self):
        with fenced_lock(NAME, ttl=30) as lock:
            with transaction.atomic():
                with pytest.raises(OpenTransaction, match="can't be renewed"):
                    lock.renew()
                with pytest.raises(OpenTransaction, match="can't be released"):
                    lock.release()
            lock.check()
            lock.renew()


class TestWhere:
    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    def test_using_names_the_alias(self):
        with fenced_lock(NAME, ttl=30, using="other") as lock:
            assert lock.using == "other"
        assert not FencedLock.objects.exists()
        assert FencedLock.objects.using("other").get().token == lock.token

    def test_dblock_database_is_the_default_alias(self, settings):
        settings.DBLOCK_DATABASE = "sqlite"
        with pytest.raises(UnsupportedDatabase, match="SQLite"):
            fenced_lock(NAME, ttl=30).__enter__()

    def test_router_is_the_last_default(self, settings):
        settings.DATABASE_ROUTERS = [Router()]
        with pytest.raises(UnsupportedDatabase, match="SQLite"):
            fenced_lock(NAME, ttl=30).__enter__()

    def test_cockroachdb_is_refused_by_name(self, cockroach):
        with pytest.raises(UnsupportedDatabase, match="CockroachDB"):
            fenced_lock(NAME, ttl=30).__enter__()
        assert not FencedLock.objects.exists()

    def test_read_only_primary_is_not_reported_as_a_standby(self):
        """A read-only primary looks the same up to the question that tells."""
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
        try:
            with pytest.raises(Exception, match="read-only") as caught:
                fenced_lock(NAME, ttl=30).__enter__()
            assert not isinstance(caught.value, StandbyDatabase)
        finally:
            connection.close()


class Router:
    def db_for_write(self, model, **hints):
        return "sqlite" if model is FencedLock else None


class TestTheCommitIsDurable:
    def test_unconfirmed_commit_does_not_acquire(self, monkeypatch, observer):
        warn_like_the_server(monkeypatch)
        with pytest.raises(NotReplicated, match="no synchronous standby confirmed it"):
            fenced_lock(NAME, ttl=30).__enter__()
        assert is_expired(observer), "it was given back"

    def test_unconfirmed_commit_does_not_renew(self, monkeypatch):
        with fenced_lock(NAME, ttl=30, heartbeat=False) as lock:
            before = lock.remaining
            warn_like_the_server(monkeypatch)
            with pytest.raises(NotReplicated):
                lock.renew()
            assert not lock.lost
            assert lock.remaining < before

    def test_other_warnings_are_ignored(self):
        with connection.cursor() as cursor, table.unreplicated(connection.connection) as warnings:
            cursor.execute("DO $$ BEGIN RAISE WARNING 'SyncRepWaitForLSN'; END $$")
        assert warnings == []

    def test_server_warning_is_recognised_in_any_language(self):
        """In whatever language its message is."""
        heard = SimpleNamespace(source_function="SyncRepWaitForLSN", message_primary="attente")
        connection.ensure_connection()
        before = list(connection.connection._notice_handlers)
        with connection.cursor(), table.unreplicated(connection.connection) as warnings:
            for handler in connection.connection._notice_handlers:
                handler(heard)
        assert warnings == ["attente"]
        assert connection.connection._notice_handlers == before


def warn_like_the_server(monkeypatch):
    """The real one is in test_crash.py."""

    @contextmanager
    def unreplicated(_driver):
        yield ["canceling wait for synchronous replication due to user request"]

    monkeypatch.setattr(table, "unreplicated", unreplicated)


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("timeout", -1), ("timeout", "1"), ("hold_at_least", -1), ("lock_delay", None),
        ],
    )  # fmt: skip
    def test_wrong_seconds_are_refused(self, argument, value):
        with pytest.raises(ValueError, match=argument):
            fenced_lock(NAME, ttl=30, **{argument: value})

    def test_metadata_is_a_json_object(self):
        with pytest.raises(TypeError, match="must be a dict"):
            fenced_lock(NAME, ttl=30, metadata=[1])
        with pytest.raises(TypeError, match="JSON serializable"):
            fenced_lock(NAME, ttl=30, metadata={"a": object()})

    def test_wrong_key_is_refused_at_construction(self):
        with pytest.raises(ValueError, match="needs a key"):
            fenced_lock(ttl=30)
        with pytest.raises(TypeError, match="cannot be part"):
            fenced_lock(1.5, ttl=30)

    def test_callable_key_in_a_with_block_is_refused(self):
        with pytest.raises(TypeError, match="for the decorator"):
            fenced_lock(lambda: 1, ttl=30).__enter__()

    def test_one_object_is_entered_again_only_after_its_exit(self):
        """The object is configuration: inside itself it is refused like any other waiter."""
        lock = fenced_lock(NAME, ttl=30)
        other = fenced_lock("other", ttl=30)
        with lock, other as held:
            with pytest.raises(LockTimeout), lock:
                pass
            lock.__exit__(None, None, None)
            with lock:
                held.check()
            lock.__enter__()


class TestDecorator:
    def test_each_call_holds_the_lease(self):
        @fenced_lock("inventory", lambda sku, count: sku, ttl=30)
        def buy(sku, count):
            return row(f"inventory:{sku}").grants * count

        assert buy("sku-1", 2) == 2
        assert buy("sku-1", count=2) == 4
        assert buy.__name__ == "buy"

    def test_constant_key_is_shared_by_all_calls(self):
        @fenced_lock(NAME, ttl=30)
        def work():
            with pytest.raises(LockTimeout):
                work()
            return "done"

        assert work() == "done"

    def test_generators_and_classes_are_refused(self):
        def generator():
            yield

        async def asynchronous():
            yield

        for wrong in (generator, asynchronous):
            with pytest.raises(TypeError, match="generator function"):
                fenced_lock(NAME, ttl=30)(wrong)
        with pytest.raises(TypeError, match="is a class"):
            fenced_lock(NAME, ttl=30)(type)
