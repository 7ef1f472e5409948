"""Crashes, restarts, standbys and replication, on a cluster that belongs to the tests."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.functions import Now

from django_dblock import (
    FencedLock,
    LockLost,
    NotReplicated,
    StandbyDatabase,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    force_release,
)
from django_dblock.core.connection import positional
from django_dblock.sql import fencing as sql
from django_dblock.sql.commits import UNAWAITED
from tests.fencing.helpers import NAME, beat_now, is_expired, renewed_at, row, started
from tests.helpers import observe, servers
from tests.helpers.servers import crash, keep_wal_in_memory, need, switched_to

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    server = servers.forgetful()
    yield server
    server.remove()


@pytest.fixture
def own(transactional_db, cluster):
    with switched_to(cluster):
        call_command("migrate", "django_dblock", verbosity=0)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL synchronous_commit = on")  # no crash brings the rows back
            FencedLock.objects.all().delete()
        yield cluster


@pytest.fixture
def looking(own):
    with psycopg.connect(own.url, autocommit=True) as found:
        yield found


def test_token_never_repeats_after_a_server_crash(own):
    """The session's commits are asynchronous; those of grants and renewals are not."""
    tokens = []
    for _ in range(3):
        block = fenced_lock(NAME, ttl=600, heartbeat=False)
        lock = block.__enter__()
        lock.renew(ttl=900)
        tokens.append(lock.token)
        crash(own)
        assert row().token == lock.token, "an acknowledged grant is there"
        assert row().expires_at == lock.expires_at, "an acknowledged renewal, too"
        block.__exit__(None, None, None)
    assert tokens == sorted(set(tokens))


@pytest.fixture
def waiting_for_the_disk(own):
    """The session's commits wait for the disk; a crash loses only those that do not."""
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")


def release(kind, **options):
    """Acquire and release a lease; return its token."""
    block = {
        "fenced_lock": lambda: fenced_lock(NAME, heartbeat=False, **options),
        "permit": lambda: fenced_semaphore(NAME, permits=1, heartbeat=False, **options),
        "writer": lambda: fenced_rwlock(NAME).write(heartbeat=False, **options),
    }[kind]
    with block() as lease:
        return lease.token


@pytest.mark.parametrize("kind", ["fenced_lock", "permit", "writer"])
def test_release_lost_in_a_crash_leaves_the_lease_until_it_expires(own, waiting_for_the_disk, kind):
    """A release does not wait for the disk. What a crash loses comes back held, and expires."""
    keep_wal_in_memory(own)
    token = release(kind, ttl=600)
    assert is_expired_row(token)
    crash(own)
    assert not is_expired_row(token)
    FencedLock.objects.filter(token=token).update(expires_at=Now())
    assert release(kind, ttl=600) > token


@pytest.mark.parametrize("kind", ["fenced_lock", "permit", "writer"])
def test_hold_at_least_survives_a_crash(own, kind):
    """Also where the session's commits are asynchronous."""
    token = release(kind, ttl=600, hold_at_least=3600)
    before = FencedLock.objects.get(token=token)
    crash(own)
    after = FencedLock.objects.get(token=token)
    assert (after.expires_at, after.lock_delay) == (before.expires_at, before.lock_delay)
    assert after.lock_delay > timedelta(minutes=59)


def test_forced_release_survives_a_crash(own):
    """Else the old holder would have its token again."""
    with pytest.raises(LockLost), fenced_lock(NAME, ttl=600, heartbeat=False) as lease:
        assert force_release(NAME)
        crash(own)
        assert row().token > lease.token
        with lease.guard():
            pass


def test_hold_at_least_waits_for_the_standby(granted, missing_standby):
    """A failover to the standby would lose it otherwise."""
    leaving = started(granted.release)
    [[pid]] = observe.until(lambda: waits_for_standby(missing_standby), "the release waits")
    missing_standby.execute("SELECT pg_cancel_backend(%s)", [pid])
    leaving.join()
    assert row().lock_delay > timedelta(minutes=59)


def is_expired_row(token):
    return FencedLock.objects.filter(token=token, expires_at__lte=Now()).exists()


def test_negative_twin_asynchronous_grant_repeats_a_token(own, looking):
    """A counter, as other lock tables have it, committed as the session does."""
    looking.execute("CREATE TABLE counter AS SELECT 1 AS token")
    looking.execute("CHECKPOINT")
    keep_wal_in_memory(own)
    count = "UPDATE counter SET token = token + 1 RETURNING token"
    first = looking.execute(count).fetchone()
    looking.close()
    crash(own)
    with psycopg.connect(own.url, autocommit=True) as again:
        assert again.execute(count).fetchone() == first
        again.execute("DROP TABLE counter")


def test_token_never_repeats_after_a_failover(own):
    """The row is as it was before: the clock has passed the token."""
    with fenced_lock(NAME, ttl=30):
        pass
    before = row()
    with fenced_lock(NAME, ttl=30) as lost:
        pass
    FencedLock.objects.update(token=before.token)
    with fenced_lock(NAME, ttl=30) as lock:
        assert lock.token > lost.token


def test_held_lease_survives_a_restart_of_the_database(own, looking):
    with fenced_lock(NAME, ttl=60) as lock:
        beat_now()
        before = observe.until(lambda: renewal_after(looking, lock), "it is renewed")
        connection.close()
        looking.close()
        own.stop("fast")
        beat_now()
        own.start()
        beat_now()
        with psycopg.connect(own.url, autocommit=True) as again:
            observe.until(lambda: renewed_at(again) > before, "it is renewed again")
        lock.check()
    assert not lock.lost


def renewal_after(looking, lock):
    found = renewed_at(looking)
    return found if found > row().acquired_at else None


@pytest.fixture
def granted(own):
    """A lease that was granted before the standby was missing."""
    return fenced_lock(NAME, ttl=600, hold_at_least=3600, heartbeat=False).__enter__()


@pytest.fixture
def missing_standby(own, looking):
    """Commits wait for a standby that never comes."""
    looking.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
    looking.execute("SELECT pg_reload_conf()")
    observe.until(
        lambda: looking.execute("SHOW synchronous_standby_names").fetchone() == ("ghost",),
        "the setting is read",
    )
    servers.until_commits_wait(own)
    yield looking
    looking.execute("ALTER SYSTEM RESET synchronous_standby_names")
    looking.execute("SELECT pg_reload_conf()")


def cancel_the_wait(looking, work):
    """Run it in a process of its own; when it waits for the standby, an operator cancels that."""
    with subprocess.Popen(
        [sys.executable, "-c", work], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DATABASE_URL": f"postgres://postgres@127.0.0.1:{looking.info.port}/postgres",
        },
    ) as child:  # fmt: skip
        [[pid]] = observe.until(lambda: waits_for_standby(looking), "a commit waits")
        looking.execute("SELECT pg_cancel_backend(%s)", [pid])
        output, _ = child.communicate(timeout=120)
    return output.strip()


ACQUIRE = """
import django; django.setup()
from django_dblock import fenced_lock, NotReplicated
try:
    fenced_lock("nightly-sync", ttl=30, heartbeat=False).__enter__()
except NotReplicated as error:
    print(type(error).__name__)
"""


def test_cancelled_wait_for_the_standby_grants_nothing(missing_standby):
    """And it waited at all, though the session commits asynchronously: the statement says so."""
    assert missing_standby.execute("SHOW synchronous_commit").fetchone() == ("off",)
    assert cancel_the_wait(missing_standby, ACQUIRE) == NotReplicated.__name__
    assert is_expired(missing_standby), "it was given back, without a wait for the standby"


@pytest.mark.parametrize("awaited", [False, True], ids=["", "negative-twin"])
def test_lost_race_for_a_new_name_waits_for_no_standby(missing_standby, awaited):
    """It has only locked the winner's row; as long as it did, the winner could not release it."""
    asked = {"name": NAME, "slot": 0, "owner": "a", "ttl": 30, "lock_delay": 0, "metadata": "{}"}
    statement, parameters = positional(sql.TAKE_OR_INSERT, asked)
    unawaited = f"{UNAWAITED} IS NULL"
    assert unawaited in statement
    if awaited:  # as the session commits
        statement = statement.replace(unawaited, "false")
    outcomes = []

    def ask():
        with psycopg.ClientCursor(
            psycopg.connect(missing_standby.info.dsn, autocommit=True)
        ) as one:
            one.execute("SET synchronous_commit = on")
            outcomes.append(one.execute(statement, parameters).fetchone())
            one.connection.close()

    def cancel_the_commit():
        [[pid]] = observe.until(lambda: waits_for_standby(missing_standby), "a commit waits")
        missing_standby.execute("SELECT pg_cancel_backend(%s)", [pid])

    winner = started(ask)
    observe.until(lambda: waits_for_standby(missing_standby), "the grant waits")
    loser = started(ask)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    observe.until(lambda: missing_standby.execute(waits).fetchone() == (1,), "the other waits")
    cancel_the_commit()
    winner.join()
    observe.until(
        lambda: len(outcomes) == 2 or waits_for_standby(missing_standby), "an answer, or a wait"
    )
    has_waited = len(outcomes) < 2
    if has_waited:
        cancel_the_commit()
    loser.join()
    assert has_waited == awaited
    assert [outcome is None for outcome in sorted(outcomes, key=bool)] == [True, False]


def test_fact_set_config_applies_to_its_own_commit(missing_standby):
    """And only for that one. It waits until somebody cancels the wait, which is a warning."""
    with psycopg.connect(missing_standby.info.dsn, autocommit=True) as one:
        notices = []
        one.add_notice_handler(lambda notice: notices.append(notice.source_function))
        one.execute("SET synchronous_commit = off")
        one.execute("CREATE TABLE fact AS SELECT 1 AS n")
        assert notices == []
        waiting = started(
            lambda: one.execute(
                "UPDATE fact SET n = 2 RETURNING set_config('synchronous_commit', 'on', true)"
            )
        )
        pid = one.info.backend_pid
        observe.until(lambda: waits_for_standby(missing_standby) == [(pid,)], "it waits")
        missing_standby.execute("SELECT pg_cancel_backend(%s)", [pid])
        waiting.join()
        assert notices == ["SyncRepWaitForLSN"]
        one.execute("UPDATE fact SET n = 3")
        assert notices == ["SyncRepWaitForLSN"]
        assert one.execute("SHOW synchronous_commit").fetchone() == ("off",)
        one.execute("DROP TABLE fact")


def waits_for_standby(looking):
    return looking.execute(
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    ).fetchall()


@pytest.fixture
def with_table(transactional_db, primary):
    with switched_to(primary):
        call_command("migrate", "django_dblock", verbosity=0)
    return primary


def test_on_a_standby_nothing_is_granted(with_table, standby):
    with switched_to(standby):
        observe.until(lambda: has_table(standby), "the table is there")
        with pytest.raises(StandbyDatabase, match="is a standby"):
            fenced_lock(NAME, ttl=30).__enter__()


def test_error_of_a_block_precedes_a_release_on_a_standby(with_table, standby, caplog):
    with switched_to(with_table):
        with pytest.raises(ZeroDivisionError), fenced_lock(NAME, ttl=30, heartbeat=False):
            observe.until(lambda: has_table(standby), "the table is there")
            connection.close()
            connection.settings_dict.update(PORT=standby.port)  # the address leads elsewhere now
            raise ZeroDivisionError
    assert "was not released, it expires" in caplog.text


def has_table(server):
    with psycopg.connect(server.url) as looking:
        return looking.execute("SELECT to_regclass('django_dblock_fencedticket')").fetchone()[0]


HOLD = """
import json, threading, time
import django; django.setup()
from django_dblock import fenced_lock, FencedLock
pause = threading.Event()
with fenced_lock("nightly-sync", ttl=12) as lock:
    for _ in range(3):
        before = FencedLock.objects.get().renewed_at
        while FencedLock.objects.get().renewed_at == before:
            lock.check()
            pause.wait(0.05)  # the heartbeat needs the processor; time.sleep() fails here
    with lock.guard():
        pass
    row = FencedLock.objects.get()
    lasts = (row.expires_at - row.renewed_at).total_seconds()
    print(json.dumps({"lasts": lasts, "wall": time.time(), "remaining": lock.remaining}))
"""


@pytest.mark.parametrize("skew", ["+1h", "-1h"])
def test_wrong_clock_of_the_application_changes_nothing(skew, own, looking):
    """By libfaketime. The server's wall clock is not moved here: that needs a machine of its own.
    What a jump of it does is bounded by the statements: tokens still grow, and a lease lasts
    longer or shorter by the jump, which a guard's writes survive either way."""
    need("faketime", "faketime")
    done = subprocess.run(
        ["faketime", "--exclude-monotonic", "-f", skew, sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE, text=True, check=True, timeout=60,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DATABASE_URL": own.url,
        },
    )  # fmt: skip
    told = json.loads(done.stdout)
    [clock] = looking.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert abs(abs(told["wall"] - clock) - 3600) < 60, "its clock was wrong indeed"
    assert told["lasts"] == pytest.approx(12, abs=0.2)
    assert 0 < told["remaining"] <= 12
