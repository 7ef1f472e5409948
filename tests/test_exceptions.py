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
    IdempotencyAbandoned,
    IdempotencyError,
    IdempotencyInProgress,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    IdempotencyLeaseLost,
    LockDeadlock,
    LockLost,
    LockTableFull,
    LockTimeout,
    MissingVersion,
    NotReplicated,
    OpenTransaction,
    RetryInTransaction,
    StaleFence,
    StaleObject,
    StaleObjects,
    StandbyDatabase,
    TooManyIdempotencyKeys,
    UnsafeIsolation,
    UnstorableResponse,
    UnsupportedDatabase,
)
from tests.app.models import Product

FACTS = {"keys": (("inventory", "sku-1"),), "name": "inventory:sku-1", "using": "default"}
MISSING = [
    (MissingVersion(model="app.Product", pk=1, adding=True), "Use save() to insert it"),
    (MissingVersion(model="app.Product", pk=1, adding=False), "Read the whole object"),
]

# Whoever raises these says what happened: of a header or a response, of a client, of a row.
REQUEST = {"scope": "user:7", "key": "8e0397…", "using": "default"}
OF_REQUESTS = [
    IdempotencyError("It has its answer already.", **REQUEST),
    IdempotencyKeyMissing("It needs a key."),
    IdempotencyKeyInvalid("It is not one key."),
    IdempotencyKeyReused("It was used for another request.", **REQUEST),
    IdempotencyInProgress("It is being worked on.", **REQUEST, retry_after=4),
    IdempotencyAbandoned("A person has to look.", **REQUEST),
    IdempotencyLeaseLost("It is lost.", **REQUEST, token=3),
    TooManyIdempotencyKeys("Wait until some have expired.", **REQUEST),
    UnstorableResponse("It is a stream."),
]


def stale(**facts):
    return StaleObject(instance=Product(pk=1), using="default", **facts)


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
    (stale(expected=7, actual=9), "has version 9, not 7, so it was changed"),
    (stale(expected=7, actual=None), "it has been deleted. Read it again"),
    (stale(expected=None, actual=None), "it has been deleted"),
    (stale(expected=7, actual=7), "a trigger or a row-level security policy"),
    (stale(expected=7, actual=6, rolled_back=True), "rolled back (or whose COMMIT got no answer)"),
    (stale(expected=7, actual=None, rolled_back=True), "and the row isn't there"),
    (StaleObjects(model="app.Product", pks=[1, 2], using="default"), 'on_conflict="report"'),
    (StaleObjects(model="app.Product", pks=[*range(11)], using="default"), "8, 9, …"),
    (RetryInTransaction(function="buy", using="default"), "@transaction.non_atomic_requests"),
]


@pytest.mark.parametrize(("error", "advice"), EXAMPLES)
def test_each_says_what_happened_to_which_key_where_and_what_to_do(error, advice):
    assert isinstance(error, DblockError)
    assert advice in str(error)
    assert "'default'" in str(error)
    if isinstance(error, exceptions.LockError):
        assert "inventory:sku-1" in str(error)
        assert error.key == ("inventory", "sku-1")


@pytest.mark.parametrize(("error", "advice"), MISSING)
def test_a_missing_version_is_of_no_database(error, advice):
    assert "app.Product 1 has no version" in str(error)
    assert advice in str(error)


def test_a_stale_object_names_its_row_and_what_is_there():
    error = stale(expected=7, actual=9)
    assert str(error).startswith("app.Product 1 on database 'default' was not written")
    assert (error.model, error.pk, error.deleted) == ("app.Product", 1, False)
    assert stale(expected=7, actual=None).deleted


@pytest.mark.parametrize("error", [*OF_REQUESTS, *(error for error, _ in [*EXAMPLES, *MISSING])])
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
    shown = {type(error) for error in [*OF_REQUESTS, *(each for each, _ in [*EXAMPLES, *MISSING])]}
    assert defined == shown | {DblockError, exceptions.LockError}


@pytest.mark.parametrize("error", OF_REQUESTS, ids=lambda error: error.code)
def test_those_of_requests_have_a_code_of_their_own_and_tell_whose_they_are(error):
    assert isinstance(error, IdempotencyError)
    assert [each.code for each in OF_REQUESTS].count(error.code) == 1
    assert {"scope", "key", "using"} <= vars(error).keys()


def test_they_are_what_django_and_python_would_call_them():
    assert issubclass(LockTimeout, TimeoutError)
    assert issubclass(UnsafeIsolation, ImproperlyConfigured)
    assert issubclass(UnsupportedDatabase, NotSupportedError)
    assert issubclass(MissingVersion, ValueError)
    assert issubclass(RetryInTransaction, RuntimeError)
    assert issubclass(OpenTransaction, RuntimeError | TransactionManagementError)
    assert issubclass(StaleFence, LockLost)


def test_of_several_keys_there_is_no_single_one():
    assert LockDeadlock(keys=(("a",), ("b",)), name="a, b", using="default").key is None
