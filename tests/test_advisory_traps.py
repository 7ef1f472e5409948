"""The ten traps that other packages fell into, a test each, named after it."""

import threading

import pytest
from django.db import connection, connections, transaction

from django_dblock import (
    LockTimeout,
    StandbyDatabase,
    advisory_lock,
    advisory_locks,
    try_advisory_lock,
)
from django_dblock.inspect import advisory_locks as inspect_locks
from django_dblock.keys import encode, key_id, to_pg_locks
from tests.app.models import Counter
from tests.helpers import observe, recipes
from tests.helpers.locks import deadlock, held, hold, number

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.loss,
    pytest.mark.server,
]

KEY = ("inventory", "sku-1")


def test_trap_1_a_shared_object_survives_another_threads_failure(observer):
    """One thread holds; the same object fails in another; the first still holds, then frees."""
    block = advisory_lock(*KEY, timeout=0)
    failed = []

    def fail():
        try:
            with block:
                pass
        except LockTimeout as error:
            failed.append(error)
        finally:
            connections.close_all()

    with block:
        other = threading.Thread(target=fail)
        other.start()
        other.join()
        assert len(failed) == 1
        assert to_pg_locks(number(*KEY)) in held(observer)
    assert held(observer) == {}
    assert not connection.in_atomic_block


@pytest.mark.parametrize("timeout", [0, 0.01])
@pytest.mark.parametrize(
    "block", [advisory_lock, lambda *key, timeout: advisory_locks([key], timeout=timeout)]
)
def test_trap_2_a_failed_entry_leaves_no_atomic_block_behind(block, timeout, rival):
    hold(rival, *KEY)
    with pytest.raises(LockTimeout), block(*KEY, timeout=timeout):
        pass
    assert not connection.in_atomic_block
    assert connection.get_autocommit()
    assert connection.savepoint_ids == []
    assert connections["default"].__dict__["_dblock_entries"] == []
    with transaction.atomic(), pytest.raises(LockTimeout), block(*KEY, timeout=timeout):
        pass
    assert not connection.in_atomic_block
    rival.execute("ROLLBACK")
    with block(*KEY, timeout=timeout):
        assert connection.in_atomic_block


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_trap_3_the_block_never_runs_unlocked(timeout, rival):
    hold(rival, *KEY)
    ran = []
    with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=timeout):
        ran.append("with")

    @advisory_lock(*KEY, timeout=timeout)
    def decorated():
        ran.append("decorated")

    with pytest.raises(LockTimeout):
        decorated()
    assert ran == []


def test_trap_3_negative_twin_ignored_result_runs_the_block(rival):
    hold(rival, *KEY)
    ran = []
    with transaction.atomic(), recipes.ignored_answer(*KEY):
        ran.append("unlocked")
    assert ran == ["unlocked"]


def lock_timeout(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        return cursor.fetchone()[0]


@pytest.mark.parametrize("form", ["SET", "SET LOCAL"])
@pytest.mark.parametrize("outcome", ["acquired", "timed out", "several acquired"])
def test_trap_4_callers_lock_timeout_is_restored(form, outcome, rival, observer):
    """On this alias and the other, after success and failure, in the transaction and after it."""
    connections["other"].cursor().execute("SET lock_timeout = '7s'")
    hold(rival, *KEY)
    try:
        with transaction.atomic(), transaction.atomic(using="other"):
            connection.cursor().execute(f"{form} lock_timeout = '5s'")
            if outcome == "timed out":
                with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0.01):
                    pass
            else:
                freeing = threading.Thread(
                    target=lambda: (observe.until_blocked(observer), rival.execute("COMMIT"))
                )
                freeing.start()
                keys = [KEY, "another"] if outcome == "several acquired" else [KEY]
                with advisory_locks(keys, timeout=9):
                    freeing.join()
            assert lock_timeout() == "5s"
            assert lock_timeout("other") == "7s"
        assert lock_timeout() == ("5s" if form == "SET" else "0")
    finally:
        rival.execute("ROLLBACK")
        connection.cursor().execute("RESET lock_timeout")
        connections["other"].close()


def test_trap_5_negative_numbers_are_found_in_pg_locks():
    """classid and objid are unsigned halves; half of all keys have negative numbers."""
    wanted = [("k", n) for n in range(50)]
    assert {key_id(encode(key)) < 0 for key in wanted} == {True, False}
    with advisory_locks(wanted):
        found = {lock.key_id for lock in inspect_locks()}
    assert found == {key_id(encode(key)) for key in wanted}


@pytest.mark.parametrize(
    "part", ["100%", "%s", "%(id)s", "%%", "'", '"', "\\", ";--", "$1", "\x00"]
)
def test_trap_6_keys_never_break_the_sql(part, rival):
    with advisory_lock(part), advisory_locks([part, "b"]):
        pass
    hold(rival, part)
    with transaction.atomic():
        assert not try_advisory_lock(part)
        with pytest.raises(LockTimeout, match="is locked"), advisory_lock(part, timeout=0.01):
            pass


def test_trap_6_lock_number_is_64_bits_of_blake2b():
    """32 bits are not enough: one pair agrees in the upper half, one in the lower, none in both.

    Byte order is fixed.
    """
    for pair, shift in (((149, 110_725), 32), ((252_451, 291_513), 0)):
        numbers = {key_id(encode(("user", n))) for n in pair}
        assert len({(number >> shift) & 0xFFFF_FFFF for number in numbers}) == 1
        assert len(numbers) == 2
    assert key_id(encode(KEY)) == -2596718357159076194


def test_trap_7_deadlock_is_detected_by_the_server(rival, observer):
    """We wait in the server's queue, so its deadlock detector sees us: no time-out is needed."""
    deadlock(rival, observer, timeout=None)


def test_trap_8_the_lock_outlives_the_block_until_commit(rival):
    with transaction.atomic():
        with advisory_lock(*KEY):
            Counter.objects.create(name="not yet visible")
        assert rival.execute("SELECT pg_try_advisory_lock(%s)", [number(*KEY)]).fetchone() == (
            False,
        )
    assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (1,)
    assert rival.execute("SELECT pg_try_advisory_lock(%s)", [number(*KEY)]).fetchone() == (True,)
    rival.execute("SELECT pg_advisory_unlock_all()")


def test_trap_8_negative_twin_session_lock_ends_before_commit(rival):
    with transaction.atomic():
        with recipes.session_lock(*KEY):
            Counter.objects.create(name="not yet visible")
        assert rival.execute("SELECT pg_try_advisory_lock(%s)", [number(*KEY)]).fetchone() == (
            True,
        )
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (0,)
    rival.execute("SELECT pg_advisory_unlock_all()")


@pytest.mark.parametrize("joined", [False, True])
def test_trap_9_release_error_keeps_the_blocks_error(joined, observer):
    """The backend is gone when the block raises: the block's error is what is seen."""

    def die():
        with advisory_lock(*KEY):
            observer.execute(
                "SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid]
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        if joined:
            with transaction.atomic():
                die()
        else:
            die()
    assert not connection.in_atomic_block
    Counter.objects.count()


@pytest.fixture
def on_standby(standby, monkeypatch):
    """The alias ``other`` leads to a hot standby."""
    alias = connections["other"]
    alias.close()
    for name, value in {"HOST": "127.0.0.1", "PORT": standby.port, "NAME": "postgres"}.items():
        monkeypatch.setitem(alias.settings_dict, name, value)
    yield alias
    alias.close()


@pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
def test_trap_10_standby_is_refused_without_a_round_trip(keys, on_standby, statements):
    with statements("other") as sent:
        with pytest.raises(StandbyDatabase, match="is a standby") as caught:
            with advisory_locks(keys, using="other"):
                pass
    assert len(sent) == 3, "BEGIN, the one statement, ROLLBACK"
    assert caught.value.using == "other"
    with transaction.atomic(using="other"):
        with pytest.raises(StandbyDatabase):
            try_advisory_lock("a", using="other")
        with on_standby.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            assert cursor.fetchone() == (0,), "nothing was locked, and the transaction is usable"


def test_trap_10_negative_twin_standby_grants_a_lock(on_standby):
    with transaction.atomic(using="other"), on_standby.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(1)")
        assert cursor.fetchone() == (True,)
