"""The server's lock table holds a few thousand locks for everybody: running out is told apart."""

import psycopg
import pytest
from django.db import OperationalError, connections, transaction

from django_dblock import LockTableFull, advisory_lock, advisory_locks, try_advisory_lock

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


@pytest.fixture
def small(primary, monkeypatch):
    """The alias ``other`` leads to a server with a small lock table, filled by somebody else."""
    alias = connections["other"]
    alias.close()
    for name, value in {"HOST": "127.0.0.1", "PORT": primary.port, "NAME": "postgres"}.items():
        monkeypatch.setitem(alias.settings_dict, name, value)
    alias.ensure_connection()  # connecting takes locks, too
    yield alias
    alias.close()


@pytest.fixture
def full(small, primary):
    with psycopg.connect(primary.url, autocommit=True) as filling:
        number = 0
        filling.execute("BEGIN")
        with pytest.raises(psycopg.errors.OutOfMemory):
            while True:
                filling.execute("SAVEPOINT s")
                filling.execute(
                    "SELECT pg_advisory_xact_lock(n) FROM generate_series(%s::int, %s::int) AS n",
                    [number, number + 9],
                )
                filling.execute("RELEASE s")
                number += 10
        filling.execute("ROLLBACK TO s")
        for extra in range(10):  # the last places
            try:
                filling.execute("SAVEPOINT t")
                filling.execute("SELECT pg_advisory_xact_lock(%s::int)", [-1 - extra])
                filling.execute("RELEASE t")
            except psycopg.errors.OutOfMemory:
                filling.execute("ROLLBACK TO t")
        yield filling


def test_a_full_table_is_said_with_the_setting_to_raise(full, small):
    with pytest.raises(LockTableFull, match="max_locks_per_transaction") as caught:
        with advisory_lock("a", using="other"):
            pass
    assert caught.value.key == ("a",)
    assert caught.value.using == "other"
    assert not small.in_atomic_block


def test_several_keys_in_a_transaction_leave_it_usable(full, small):
    with transaction.atomic(using="other"):
        with pytest.raises(LockTableFull), advisory_locks(["a", "b"], using="other"):
            pass
        assert not small.needs_rollback
        with small.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_one_key_in_a_transaction_ends_it_and_django_knows(full, small):
    """No savepoint was paid for: so leaving atomic() must not pretend to commit."""
    with pytest.raises(transaction.TransactionManagementError), transaction.atomic(using="other"):
        with pytest.raises(LockTableFull):
            try_advisory_lock("a", using="other")
        assert small.needs_rollback
        with small.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_another_shortage_of_memory_is_djangos_own_error(small):
    """The same SQLSTATE, 53200, without the hint about the lock table."""
    with pytest.raises(OperationalError) as caught, transaction.atomic(using="other"):
        with small.cursor() as cursor:
            cursor.execute(
                "CREATE SCHEMA impostor; CREATE FUNCTION impostor.version() RETURNS text"
                " LANGUAGE plpgsql AS $$ BEGIN RAISE 'no memory' USING ERRCODE = '53200'; END $$;"
                "SET LOCAL search_path = impostor, pg_catalog"
            )
        with advisory_lock("a", using="other"):
            pass
    assert not isinstance(caught.value, LockTableFull)
