"""Errors: under one base, with their data, picklable, and they say what to do next."""

import copy
import pickle

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError
from django.db.transaction import TransactionManagementError

from django_dblock import exceptions
from django_dblock.exceptions import (
    DblockError,
    LockDeadlock,
    LockLost,
    LockTableFull,
    LockTimeout,
    NotReplicated,
    OpenTransaction,
    StaleFence,
    StandbyDatabase,
    UnsafeIsolation,
    UnsupportedDatabase,
)

FACTS = {"keys": (("inventory", "sku-1"),), "name": "inventory:sku-1", "using": "default"}
EXAMPLES = [
    (LockTimeout(**FACTS, timeout=10, waited=10.01), "Try again later"),
    (LockTimeout(**FACTS, timeout=None, waited=1.0), "server's lock_timeout"),
    (LockDeadlock(**FACTS), "End this transaction and run it again"),
    (LockTableFull(**FACTS), "Raise max_locks_per_transaction"),
    (UnsafeIsolation(**FACTS, isolation="serializable"), "Run it at READ COMMITTED"),
    (StandbyDatabase(**FACTS), "Pass using="),
    (OpenTransaction(**FACTS, act="taken"), "Enter fenced_lock() outside"),
    (NotReplicated(**FACTS), "Try again when replication works"),
    (LockLost(**FACTS, token=7, reason="it ran out"), "don't write"),
    (StaleFence(**FACTS, token=7, reason="a newer one", model="app.account", pk=1), "account 1"),
    (StaleFence(**FACTS, token=7, reason="a newer one", model="app.account"), "to app.account was"),
    (UnsupportedDatabase(using="default", engine="SQLite"), "Pass using="),
]


@pytest.mark.parametrize(("error", "advice"), EXAMPLES)
def test_each_says_what_happened_to_which_key_where_and_what_to_do(error, advice):
    assert isinstance(error, DblockError)
    assert advice in str(error)
    assert "'default'" in str(error)
    if isinstance(error, exceptions.LockError):
        assert "inventory:sku-1" in str(error)
        assert error.key == ("inventory", "sku-1")


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES])
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_each_survives_pickling_with_its_data(error, again):
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


def test_every_error_has_an_example():
    defined = {
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and issubclass(value, DblockError)
    }
    assert defined == {type(error) for error, _ in EXAMPLES} | {DblockError, exceptions.LockError}


def test_they_are_what_django_and_python_would_call_them():
    assert issubclass(LockTimeout, TimeoutError)
    assert issubclass(UnsafeIsolation, ImproperlyConfigured)
    assert issubclass(UnsupportedDatabase, NotSupportedError)
    assert issubclass(OpenTransaction, RuntimeError | TransactionManagementError)
    assert issubclass(StaleFence, LockLost)


def test_of_several_keys_there_is_no_single_one():
    assert LockDeadlock(keys=(("a",), ("b",)), name="a, b", using="default").key is None
