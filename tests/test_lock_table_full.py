"""A full lock table of the server has its own error."""

import pytest
from django.db import OperationalError, transaction

from django_dblock import LockTableFull, advisory_lock, advisory_locks, try_advisory_lock

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def test_full_table_error_names_the_setting(full_lock_table, small_lock_table):
    with pytest.raises(LockTableFull, match="max_locks_per_transaction") as caught:
        with advisory_lock("a", using="other"):
            pass
    assert caught.value.key == ("a",)
    assert caught.value.using == "other"
    assert not small_lock_table.in_atomic_block


def test_full_table_at_several_keys_leaves_transaction_usable(full_lock_table, small_lock_table):
    with transaction.atomic(using="other"):
        with pytest.raises(LockTableFull), advisory_locks(["a", "b"], using="other"):
            pass
        assert not small_lock_table.needs_rollback
        with small_lock_table.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_full_table_at_one_key_aborts_the_transaction(full_lock_table, small_lock_table):
    """No savepoint was paid for: so leaving atomic() must not pretend to commit."""
    with pytest.raises(transaction.TransactionManagementError), transaction.atomic(using="other"):
        with pytest.raises(LockTableFull):
            try_advisory_lock("a", using="other")
        assert small_lock_table.needs_rollback
        with small_lock_table.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_other_memory_error_is_djangos(small_lock_table):
    """The same SQLSTATE, 53200, without the hint about the lock table."""
    with pytest.raises(OperationalError) as caught, transaction.atomic(using="other"):
        with small_lock_table.cursor() as cursor:
            cursor.execute(
                "CREATE SCHEMA impostor;"
                "CREATE FUNCTION impostor.pg_is_in_recovery() RETURNS boolean LANGUAGE plpgsql"
                " AS $$ BEGIN RAISE 'no memory' USING ERRCODE = '53200'; END $$;"
                "SET LOCAL search_path = impostor, pg_catalog"
            )
        with advisory_lock("a", using="other"):
            pass
    assert not isinstance(caught.value, LockTableFull)
