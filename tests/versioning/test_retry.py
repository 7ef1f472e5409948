"""retry_on_conflict: the whole function again, in a new transaction, after a random pause."""

import functools
from contextlib import contextmanager, suppress

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import TestCase
from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation

from django_dblock import (
    LockDeadlock,
    RetryInTransaction,
    StaleObject,
    StaleObjects,
    advisory_lock,
    retry_on_conflict,
)
from django_dblock.signals import conflict_retried
from django_dblock.versioning import retry
from tests.app.models import Counter, Product
from tests.helpers.processes import process
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def pauses(monkeypatch):
    """What it would sleep, with the highest number that chance can give."""
    slept, asked = [], []

    def uniform(low, high):
        asked.append((low, high))
        return high

    monkeypatch.setattr(retry.random, "uniform", uniform)
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept, asked


def database_error(kind, cause):
    error = kind("as Django wraps it")
    error.__cause__ = cause()
    return error


@pytest.mark.parametrize("raised", [
    lambda: StaleObject(instance=Product(pk=1), expected=1, actual=2, using="default"),
    lambda: database_error(OperationalError, DeadlockDetected),
])  # fmt: skip
def test_committed_run_is_not_repeated_for_an_error_of_a_hook(raised, pauses):
    def sync():
        raise raised()

    @retry_on_conflict
    def pay():
        Counter.objects.create(name="payment")
        transaction.on_commit(sync)

    with pytest.raises((StaleObject, OperationalError)):
        pay()
    assert Counter.objects.count() == 1


def test_retry_reads_again(product, pauses):
    seen = []

    @retry_on_conflict
    def rename(name, *, loud):
        """Its own words."""
        again = Product.objects.get(pk=product.pk)
        seen.append(again.version)
        if len(seen) < 3:
            overtake(again)
        again.name = name.upper() if loud else name
        again.save()
        return again.name

    assert rename("mine", loud=True) == "MINE"
    assert rename.__name__ == "rename"
    assert rename.__doc__ == "Its own words."
    # What overtook it was rolled back with the run: it was of the same transaction.
    assert seen == [1, 1, 1]
    assert version_of(product) == 2
    assert pauses[0] == [0.01, 0.02]


def test_failed_run_leaves_nothing_behind(product, pauses):
    runs = []

    @retry_on_conflict(attempts=2)
    def work():
        Counter.objects.create(name=f"run {len(runs)}")
        runs.append(1)
        if len(runs) == 1:
            product.save_cas(expected=7)

    work()
    assert Counter.objects.get().name == "run 1"


def test_pause_has_full_jitter_and_doubling_bound(pauses):
    @retry_on_conflict(attempts=6, base=0.1, cap=0.5)
    def work():
        raise StaleObjects(model="app.Product", pks=[1], using="default")

    with pytest.raises(StaleObjects):
        work()
    slept, asked = pauses
    assert asked == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.5), (0, 0.5)]
    assert slept == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_pause_after_very_many_attempts_is_the_cap(pauses):
    @retry_on_conflict(attempts=1100)
    def work():
        raise StaleObjects(model="app.Product", pks=[1], using="default")

    with pytest.raises(StaleObjects):
        work()
    assert (len(pauses[0]), pauses[0][-1]) == (1099, 1.0)


def test_pause_is_outside_the_transaction(monkeypatch, product):
    inside = []
    monkeypatch.setattr(retry.time, "sleep", lambda _: inside.append(connection.in_atomic_block))

    @retry_on_conflict(attempts=2)
    def work():
        assert connection.in_atomic_block
        product.save_cas(expected=7)

    with pytest.raises(StaleObject):
        work()
    assert inside == [False]


@pytest.mark.parametrize(
    "error",
    [
        LockDeadlock(keys=(("a",),), name="a", using="default"),
        StaleObjects(model="app.Product", pks=[1], using="default"),
        database_error(OperationalError, SerializationFailure),
        database_error(OperationalError, DeadlockDetected),
    ],
)
def test_conflicts_and_deadlocks_are_retried(error, pauses):
    runs = []

    @retry_on_conflict(attempts=3)
    def work():
        runs.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        work()
    assert caught.value is error
    assert len(runs) == 3


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("the connection is lost"),
        database_error(IntegrityError, UniqueViolation),
        LookupError(),
    ],
)
def test_other_errors_are_not_retried(error, pauses):
    runs = []

    @retry_on_conflict
    def work():
        runs.append(1)
        raise error

    with pytest.raises(type(error)):
        work()
    assert len(runs) == 1


def test_attempts_1_never_retries(pauses):
    runs = []

    @retry_on_conflict(attempts=1)
    def work():
        runs.append(1)
        raise StaleObjects(model="app.Product", pks=[1], using="default")

    with pytest.raises(StaleObjects):
        work()
    assert (len(runs), pauses[0]) == (1, [])


def test_signal_has_error_and_delay(product, pauses):
    heard = []

    def hear(sender, **facts):
        heard.append((sender, facts["error"].actual, facts["attempt"], facts["delay"]))
        raise LookupError  # never raised

    def work():
        product.save_cas(expected=7)

    conflict_retried.connect(hear)
    try:
        with pytest.raises(StaleObject):
            retry_on_conflict(attempts=3)(work)()
    finally:
        conflict_retried.disconnect(hear)
    assert heard == [(work, 1, 1, 0.01), (work, 1, 2, 0.02)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attempts": 0}, "attempts="),
        ({"attempts": 1.5}, "attempts="),
        ({"attempts": True}, "attempts="),
        ({"base": -1}, "base= and cap="),
        ({"base": 2, "cap": 1}, "base= and cap="),
    ],
)
def test_wrong_options_are_refused_at_decoration(options, match):
    with pytest.raises(ValueError, match=match):
        retry_on_conflict(**options)


def test_open_transaction_is_refused_before_running():
    runs = []
    work = retry_on_conflict(functools.partial(runs.append, 1))
    with transaction.atomic():
        with pytest.raises(RetryInTransaction) as caught:
            work()
        assert "partial" in caught.value.function
        assert not transaction.get_rollback()
    connection.set_autocommit(False)
    try:
        with pytest.raises(RetryInTransaction):
            work()
    finally:
        connection.set_autocommit(True)
    assert runs == []
    with transaction.atomic(using="other"):
        work()
    assert runs == [1]
    with transaction.atomic(using="other"), pytest.raises(RetryInTransaction) as caught:
        retry_on_conflict(using="other")(runs.append)(1)
    assert caught.value.using == "other"


def test_async_functions_and_generators_are_refused():
    async def coroutine():
        pass

    def generator():
        yield

    async def both():
        yield

    refused = {
        coroutine: "sync_to_async",
        generator: "generator",
        both: "generator",
        contextmanager(generator): "its body runs after the call",
        functools.partial(generator): "its body runs after the call",
        Product: "is a class",
        staticmethod(len): "below @staticmethod",
    }
    for function, why in refused.items():
        with pytest.raises(TypeError, match=why):
            retry_on_conflict(function)
        with pytest.raises(TypeError, match=why):
            retry_on_conflict(attempts=2)(function)


def test_arguments_of_any_name_reach_the_function():
    def function(**options):
        return options

    options = {"alias": 1, "function": 2, "using": 3, "attempt": 4}
    assert retry_on_conflict(function)(**options) == options


@pytest.mark.parametrize("attempts", [1, 2])
def test_unfinished_result_is_refused_and_rolled_back(attempts):
    async def later():
        pass

    @retry_on_conflict(attempts=attempts)
    def hidden():
        Counter.objects.create(name="a")
        return later()

    with pytest.raises(TypeError, match="returned a coroutine"):
        hidden()
    assert not Counter.objects.exists()


class InATestCase(TestCase):
    databases = {"default", "other"}  # noqa: RUF012

    def test_testcase_transaction_is_ignored(self):
        product = Product.objects.create(name="a")
        runs = []

        @retry_on_conflict(base=0)
        def work():
            runs.append(1)
            product.save_cas(expected=len(runs) - 1)

        work()
        assert len(runs) == 2
        with transaction.atomic(), pytest.raises(RetryInTransaction):
            work()


# What PostgreSQL refuses


@pytest.fixture
def isolation():
    def level(name):
        with connection.cursor() as cursor:
            cursor.execute(f"SET default_transaction_isolation = '{name}'")

    yield level
    connection.close()


def test_40001_at_the_statement_is_retried(product, isolation, rival, pauses):
    """REPEATABLE READ: the losing UPDATE is refused, it does not find zero rows."""
    isolation("repeatable read")
    runs = []

    @retry_on_conflict
    def work():
        again = Product.objects.get(pk=product.pk)
        if not runs:
            rival.execute("UPDATE app_product SET version = version + 1, stock = 7")
        runs.append(again.stock)
        again.save()

    work()
    assert runs == [10, 7]
    assert version_of(product) == 3
    runs.clear()
    with pytest.raises(OperationalError) as caught:
        retry_on_conflict(attempts=1)(work.__wrapped__)()
    assert caught.value.__cause__.sqlstate == "40001"


def test_40001_at_commit_is_retried(product, isolation, rival, pauses):
    """Write skew: both may write, one may commit."""
    isolation("serializable")
    other = Product.objects.create(name="other")
    runs = []

    @retry_on_conflict
    def work():
        assert Product.objects.filter(stock__gt=0).exists()
        again = Product.objects.get(pk=product.pk)
        if not runs:
            with rival.transaction():
                rival.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                rival.execute("SELECT sum(stock) FROM app_product").fetchall()
                again.save()
                rival.execute("UPDATE app_product SET stock = 5 WHERE id = %s", [other.pk])
        else:
            again.save()
        runs.append(1)

    work()
    assert len(runs) == 2, "the first run went to its end, and was refused at COMMIT"
    assert version_of(product) == 2


def opposite(channel, first, second):
    with transaction.atomic():
        Product.objects.filter(pk=first).update(stock=1)
        channel.send("has the first")
        channel.receive()
        Product.objects.filter(pk=second).update(stock=1)


@pytest.mark.processes
def test_40p01_deadlock_is_retried(product, pauses):
    """One of the two is ended by PostgreSQL; whichever it is, ours ends well."""
    other = Product.objects.create(name="other")
    runs = []
    with process(opposite, other.pk, product.pk) as rival:
        rival.receive()

        @retry_on_conflict
        def work():
            runs.append(1)
            Product.objects.filter(pk=product.pk).update(stock=2)
            if len(runs) == 1:
                rival.send("go")
            Product.objects.filter(pk=other.pk).update(stock=2)

        work()
        if len(runs) == 1:  # then it was the other
            with pytest.raises(OperationalError, match="deadlock"):
                rival.receive()
        else:
            with suppress(OperationalError):  # it, too, if our second run has overtaken it
                rival.receive()
    assert set(Product.objects.values_list("stock", flat=True)) == {2}


def test_advisory_lock_inside_a_retried_function_is_allowed():
    with_lock = []

    @retry_on_conflict
    def work():
        with advisory_lock("a"):
            with_lock.append(1)

    work()
    assert with_lock == [1]
