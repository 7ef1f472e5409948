"""@locked_task and @once_task, of tasks that run at once; with a real Redis: tests/stacks."""

import functools
import importlib
import sys
from contextlib import contextmanager

import pytest
from celery import Celery
from celery.exceptions import Retry

from django_dblock import (
    IdempotencyInProgress,
    LockTimeout,
    UnstorableResponse,
    fenced_lock,
    run_once,
)
from django_dblock.contrib.celery import locked_task, once_task
from django_dblock.contrib.task_wrappers import OnceOptions, once
from django_dblock.idempotency.outcome import in_progress
from django_dblock.idempotency.run_once import identity_of
from tests.app.models import Counter

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("within_a_period")]

app = Celery("tests", broker="memory://", set_as_current=False)
app.conf.task_always_eager = True
app.conf.task_eager_propagates = True
app.conf.task_store_eager_result = False


@app.task
@locked_task("sync", lambda tenant: tenant, ttl=30, busy="raise", pass_lease=True)
def sync(tenant, lease):
    with lease.guard():
        Counter.objects.create(name=f"{lease.name} {tenant}")
    return lease.name


@app.task
@locked_task("sync", "acme", ttl=30, busy="skip")
def skipping():
    return "ran"


@app.task
@locked_task("sync", "acme", ttl=30)
def retrying():
    return "ran"


@app.task
@locked_task("sync", "acme", ttl=30, retry_after=7)
def retrying_later():
    return "ran"


@app.task
@once_task()
def pay(amount):
    return Counter.objects.create(name=f"paid {Counter.objects.count()}", value=amount).pk


@app.task
@once_task(key=lambda order, amount: ("order", order))
def pay_order(order, amount):
    return Counter.objects.create(name=f"paid {Counter.objects.count()}", value=amount).pk


@app.task
@once_task(key=lambda order: order, mode="lease")
def charge(order, run):
    with run.step("charge") as step:
        step.result = f"charged {order}"
    return step.result


@app.task
@once_task(key=lambda: "unstorable")
def unstorable():
    return object()


class TestLocked:
    def test_task_holds_the_lease_while_it_runs(self):
        assert sync.delay("acme").get() == "sync:acme"
        assert Counter.objects.get().name == "sync:acme acme"
        with fenced_lock("sync", "acme", ttl=30):
            pass

    def test_busy_raise_fails_with_lock_timeout(self):
        with fenced_lock("sync", "acme", ttl=30):
            with pytest.raises(LockTimeout):
                sync.delay("acme")
            assert sync.delay("globex").get() == "sync:globex"

    def test_busy_skip_ends_with_none(self):
        assert skipping.delay().get() == "ran"
        with fenced_lock("sync", "acme", ttl=30):
            assert skipping.delay().get() is None

    @pytest.mark.parametrize(
        ("task", "least", "most"), [(retrying, 15, 30), (retrying_later, 7, 7)]
    )
    def test_busy_retry_asks_celery_to_retry_later(self, task, least, most, monkeypatch):
        asked = []

        def retry(exc, countdown, max_retries):
            asked.append((type(exc), countdown, max_retries))
            return Retry()

        monkeypatch.setattr(task._get_current_object(), "retry", retry)
        with fenced_lock("sync", "acme", ttl=30), pytest.raises(Retry):
            task.delay()
        [(kind, countdown, retries)] = asked
        assert kind is LockTimeout
        assert least <= countdown <= most
        assert retries > 2**30

    def test_busy_lock_raises_in_a_plain_call(self):
        assert retrying() == "ran"
        with fenced_lock("sync", "acme", ttl=30), pytest.raises(LockTimeout):
            retrying()

    def test_plain_call_outside_celery_is_locked(self):
        function = locked_task("sync", "acme", ttl=30)(lambda: "ran")
        assert function() == "ran"
        with fenced_lock("sync", "acme", ttl=30), pytest.raises(LockTimeout):
            function()

    def test_wrong_arguments_are_refused_at_decoration(self, statements):
        async def coroutine():
            pass

        def generator():
            yield

        with statements() as sent:
            with pytest.raises(ValueError, match="busy"):
                locked_task("a", ttl=30, busy="wait")
            with pytest.raises(ValueError, match="ttl"):
                locked_task("a", ttl=0)
            with pytest.raises(TypeError, match="runs later"):
                locked_task("a", ttl=30)(coroutine)
            for function in (generator, contextmanager(generator), functools.partial(generator)):
                for decorator in (locked_task("a", ttl=30), once_task()):
                    with pytest.raises(TypeError, match="runs after the call"):
                        decorator(function)
            with pytest.raises(TypeError, match="class"):
                locked_task("a", ttl=30)(Counter)
            with pytest.raises(TypeError, match="below"):
                locked_task("a", ttl=30)(sync)
            with pytest.raises(TypeError, match="below"):
                once_task()(sync)
        assert len(sent) == 0

    def test_generator_task_is_refused(self):
        """A task that only returns a generator would do its work without the lock."""
        function = locked_task("sync", "acme", ttl=30)(lambda: (number for number in range(3)))
        with pytest.raises(TypeError, match="returned a generator"):
            function()


class TestOnce:
    def test_same_message_has_one_effect(self):
        first = pay.apply((5,), task_id="one").get()
        assert pay.apply((5,), task_id="one").get() == first
        assert pay.apply((5,), task_id="two").get() != first
        assert Counter.objects.count() == 2

    def test_different_messages_for_the_same_work_have_one_effect(self):
        first = pay_order.delay("o-1", amount=5).get()
        assert pay_order.delay("o-1", amount=5).get() == first
        assert pay_order("o-1", amount=5) == first  # called as a function, too
        assert Counter.objects.count() == 1

    def test_lease_mode_passes_the_handle(self):
        assert charge.delay("o-1").get() == "charged o-1"
        assert charge.delay("o-1").get() == "charged o-1"

    def test_message_during_the_run_is_retried(self, monkeypatch):
        asked = []

        def retry(exc, countdown, max_retries):
            asked.append(type(exc).__name__)
            return Retry()

        monkeypatch.setattr(charge._get_current_object(), "retry", retry)

        def work(handle):
            with pytest.raises(Retry):
                charge.delay("o-2")
            return "done"

        name = f"{__name__}.charge"
        assert run_once("celery", name, "o-2", work=work, mode="lease") == "done"
        assert asked == ["IdempotencyInProgress"]

    def test_inner_run_in_progress_is_the_tasks_error(self):
        """It is no other message for the same work, so it is not retried."""
        busy = in_progress(identity_of(("another job",), None), 1)

        def work():
            raise busy

        with pytest.raises(IdempotencyInProgress) as caught:
            once(
                work,
                "test",
                lambda: "key",
                OnceOptions("atomic", None, None, "takeover", None),
                pytest.fail,
            )()
        assert caught.value is busy

    def test_plain_call_without_key_is_refused(self):
        function = once_task()(lambda: None)
        with pytest.raises(TypeError, match="called as a function"):
            function()
        with pytest.raises(TypeError, match="called as a function"):
            pay(5)

    def test_result_that_is_not_json_is_refused(self):
        with pytest.raises(UnstorableResponse):
            unstorable.delay()


def test_import_without_celery_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "celery", None)
    monkeypatch.delitem(sys.modules, "django_dblock.contrib.celery")
    with pytest.raises(ImportError, match="pip install celery"):
        importlib.import_module("django_dblock.contrib.celery")
