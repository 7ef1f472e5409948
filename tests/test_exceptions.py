"""Errors: under one base, with their data, picklable, and they say what to do next."""

import copy
import pickle

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import NotSupportedError
from django.db.transaction import TransactionManagementError
from django.test import RequestFactory

from django_dblock import exceptions, idempotent
from django_dblock.exceptions import (
    DamagedAnswer,
    DblockError,
    IdempotencyAbandoned,
    IdempotencyInProgress,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    IdempotencyLeaseLost,
    IdempotencyNotReplicated,
    LockDeadlock,
    LockLost,
    LockTableFull,
    LockTimeout,
    MissingVersion,
    NotReplicated,
    OpenTransaction,
    RetryInTransaction,
    SelfDeadlock,
    StaleFence,
    StaleObject,
    StaleObjects,
    StandbyDatabase,
    TerminationRefused,
    TooManyIdempotencyKeys,
    UnsafeIsolation,
    UnstorableResponse,
    UnsupportedDatabase,
)
from django_dblock.idempotency.claim import Lease
from django_dblock.idempotency.decorator import decorated
from django_dblock.idempotency.identity import Identity
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.outcome import decide
from django_dblock.idempotency.request import DjangoRequest
from django_dblock.idempotency.responses import idempotency_problem
from django_dblock.idempotency.store import Claim, Found, _damaged, not_replicated
from django_dblock.idempotency.stored_response import StoredResponse, Undecipherable
from tests.app.models import Product

FACTS = {"keys": (("inventory", "sku-1"),), "name": "inventory:sku-1", "using": "default"}
MISSING = [
    (MissingVersion(model="app.Product", pk=1, adding=True), "Use save() to insert it"),
    (MissingVersion(model="app.Product", pk=1, adding=False), "Read the whole object"),
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
    (LockLost(**FACTS, token=7, reason="it ran out"), "write nothing more"),
    (SelfDeadlock(**FACTS, act="upgraded", advice="Leave the block first."), "Leave the block"),
    (StaleFence(**FACTS, token=7, reason="a newer one", model="app.account", pk=1), "account 1"),
    (StaleFence(**FACTS, token=7, reason="a newer one", model="app.account"), "to app.account was"),
    (UnsupportedDatabase(using="default", engine="SQLite"), "Pass using="),
    (TerminationRefused(pid=7, using="default", reason="no"), "GRANT pg_signal_backend"),
    (stale(expected=7, actual=9), "has version 9, not 7, so it was changed"),
    (stale(expected=7, actual=None), "it has been deleted. Read the row again"),
    (stale(expected=None, actual=None), "it has been deleted"),
    (stale(expected=7, actual=7), "a trigger or a row-level security policy"),
    (stale(expected=7, actual=6, rolled_back=True), "rolled back (or whose COMMIT got no"),
    (stale(expected=7, actual=None, rolled_back=True), "and the row isn't there"),
    (StaleObjects(model="app.Product", pks=[1, 2], using="default"), 'on_conflict="report"'),
    (StaleObjects(model="app.Product", pks=[*range(11)], using="default"), "8, 9, …"),
    (RetryInTransaction(function="buy", using="default"), "@transaction.non_atomic_requests"),
]


REQUEST = Identity("user:7", "3f1c0a52-8e03", "default")


def refused(state, **found):
    """What a request is told, in its own words."""
    facts = {"locked": True, **found}
    return decide(Found(state, **facts), REQUEST, resumes=False, refuses=True).error


def told(function):
    with pytest.raises(DblockError) as caught:
        function()
    return caught.value


def ask(key=None):
    @idempotent
    def pay(request): ...

    headers = {} if key is None else {"Idempotency-Key": key}
    [wanted] = [wanted for name, wanted in decorated.items() if name.endswith("ask.<locals>.pay")]
    wanted.identify(DjangoRequest(RequestFactory().post("/", headers=headers)))


LEASE = Lease(REQUEST, Claim(1, 7, "6f1c…", {}), Options("lease", lease=1), since=-1e9, kept=dict)
REQUESTS = [
    (IdempotencyKeyReused, refused("done", same=False), "Take a new key for a new request"),
    (IdempotencyInProgress, refused("new", locked=False), "Retry in a moment, with the same"),
    (IdempotencyAbandoned, refused("abandoned", id=7), "dblock release --request 7"),
    (TooManyIdempotencyKeys, refused("new", full=True), "Wait until some have expired"),
    (DamagedAnswer, _damaged("answer", REQUEST, 7, ValueError("9")), "Find out who may write the"),
    (DamagedAnswer, _damaged("answer", REQUEST, 7, Undecipherable("x")), "give the cipher the old"),
    (DamagedAnswer, _damaged("step 'a'", REQUEST, 7, ValueError("9")), "release --request 7"),
    (IdempotencyLeaseLost, told(LEASE.check), "Don't catch this error, so that transactions roll"),
    (
        IdempotencyNotReplicated,
        not_replicated(REQUEST),
        "Repeat the request with the same key when replication works",
    ),
]
WITHOUT_KEY = [
    (IdempotencyKeyMissing, told(ask), "Send a new key, a UUID for example"),
    (IdempotencyKeyInvalid, told(lambda: ask("a, b")), "without spaces, commas and semicolons"),
    (
        UnstorableResponse,
        told(lambda: StoredResponse(200, {}, b"x" * (1024 * 1024 + 1)).parameters(store_body=True)),
        "Respond with a Location and let the client GET the rest",
    ),
]
OF_REQUESTS = [error for _, error, _ in [*REQUESTS, *WITHOUT_KEY]]


@pytest.mark.parametrize(("error", "advice"), EXAMPLES)
def test_each_lock_error_names_key_alias_and_advice(error, advice):
    assert isinstance(error, DblockError)
    assert advice in str(error)
    assert "'default'" in str(error)
    if isinstance(error, exceptions.LockError):
        assert "inventory:sku-1" in str(error)
        assert error.key == ("inventory", "sku-1")


@pytest.mark.parametrize(("error", "advice"), MISSING)
def test_missing_version_has_no_alias(error, advice):
    assert "app.Product 1 has no version" in str(error)
    assert advice in str(error)


def test_stale_object_names_its_row_and_whether_it_is_deleted():
    error = stale(expected=7, actual=9)
    assert str(error).startswith("app.Product 1 on database 'default' was not written")
    assert (error.model, error.pk, error.deleted) == ("app.Product", 1, False)
    assert stale(expected=7, actual=None).deleted


@pytest.mark.parametrize(("kind", "error", "advice"), REQUESTS)
def test_each_request_error_names_scope_and_masked_key(kind, error, advice):
    assert type(error) is kind
    assert advice in str(error)
    assert "user:7" in str(error)
    assert "3f1c0a…" in str(error)
    assert REQUEST.key not in f"{error} {vars(error)}"
    assert (error.scope, error.key, error.using) == ("user:7", "3f1c0a…", "default")


@pytest.mark.parametrize(("kind", "error", "advice"), WITHOUT_KEY)
def test_each_request_error_without_a_key_says_what_to_do(kind, error, advice):
    assert type(error) is kind
    assert advice in str(error)
    assert (error.scope, error.key, error.using) == ("", "", "")


def test_request_errors_have_retry_after_and_token():
    # 0: atomic mode does not read how long the lease of another mode runs
    assert [refused("leased", remaining=left).retry_after for left in (0, 3, 60)] == [5, 3, 5]
    assert refused("new", locked=False).retry_after == 1
    assert told(LEASE.check).token == 7


@pytest.mark.parametrize("error", OF_REQUESTS, ids=lambda error: error.code)
def test_each_request_error_has_a_problem(error):
    problem = idempotency_problem(error)
    assert problem.code == error.code
    assert 400 <= problem.status <= 503
    again = ("in_progress", "lease_lost", "not_replicated")
    assert (problem.retry_after is not None) is (error.code in again)


@pytest.mark.parametrize("error", [*(error for error, _ in [*EXAMPLES, *MISSING]), *OF_REQUESTS])
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_each_error_can_be_copied_and_pickled(error, again):
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
    shown = {type(error) for error, _ in [*EXAMPLES, *MISSING]} | set(map(type, OF_REQUESTS))
    assert defined == shown | {DblockError, exceptions.LockError, exceptions.IdempotencyError}


def test_errors_have_django_and_python_bases():
    assert issubclass(LockTimeout, TimeoutError)
    assert issubclass(UnsafeIsolation, ImproperlyConfigured)
    assert issubclass(UnsupportedDatabase, NotSupportedError)
    assert issubclass(MissingVersion, ValueError)
    assert issubclass(RetryInTransaction, RuntimeError)
    assert issubclass(OpenTransaction, RuntimeError)
    assert issubclass(OpenTransaction, TransactionManagementError)
    assert issubclass(StaleFence, LockLost)


def test_error_of_several_keys_has_no_single_key():
    assert LockDeadlock(keys=(("a",), ("b",)), name="a, b", using="default").key is None
