"""@locked_task and @once_task, of tasks that run at once; with a real Redis: tests/stacks."""

import functools
import importlib
import queue
import sys
from contextlib import ExitStack, contextmanager

import pytest
from celery import Celery, chain, group
from celery.app.trace import build_tracer
from celery.exceptions import Retry
from celery.worker.request import Request
from kombu.exceptions import OperationalError

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
from tests.idempotency.leasing import update

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("within_a_period")]

app = Celery("tests", broker="memory://", set_as_current=False)
app.conf.task_always_eager = True
app.conf.task_eager_propagates = True
app.conf.task_store_eager_result = False


worker = Celery("worker", broker="memory://", backend="cache+memory://", set_as_current=False)


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


class GatewayError(Exception):
    pass


@worker.task(autoretry_for=(GatewayError,), max_retries=3)
@locked_task("fetch", "acme", ttl=30)
def fetch():
    raise GatewayError


@worker.task(autoretry_for=(GatewayError,), max_retries=3)
@once_task(key=lambda: "order", mode="lease")
def order_once(run):
    raise GatewayError


@worker.task
@locked_task("fetch", "acme", ttl=30)
def fetch_one(number):
    return number


@worker.task
def add_up(numbers):
    return sum(numbers)


@pytest.fixture
def deliver():
    """Run the task of the next message of a queue as a worker does, and return the message."""

    def take(name="celery"):
        with worker.connection_for_read() as connection:
            messages = connection.SimpleQueue(worker.amqp.queues[name])
            message = messages.get(block=False)
            message.ack()
        Request(message, app=worker).execute()
        return message

    yield take
    for task in (fetch, order_once):
        vars(task._get_current_object()).pop("override_max_retries", None)
    worker.control.purge()


def during_another_hold(act):
    with fenced_lock("fetch", "acme", ttl=30):
        act()


def during_another_run(act):
    def work(handle):
        act()
        raise ZeroDivisionError  # so that nothing is stored

    with pytest.raises(ZeroDivisionError):
        run_once("celery", f"{__name__}.order_once", "order", work=work, mode="lease")


def state(result):
    return worker.AsyncResult(result.id).state


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
    def test_busy_retry_asks_celery_to_retry_later(self, task, least, most):
        with fenced_lock("sync", "acme", ttl=30), pytest.raises(Retry) as caught:
            task.delay()
        assert isinstance(caught.value.exc, LockTimeout)
        assert caught.value.__cause__ is caught.value.exc
        assert least <= caught.value.when <= most

    def test_eager_task_is_retried_at_once(self, monkeypatch):
        with ExitStack() as held:
            held.enter_context(fenced_lock("sync", "acme", ttl=30))
            task = retrying._get_current_object()
            monkeypatch.setattr(task, "on_retry", lambda *_: held.close())
            assert retrying.apply(throw=False).get() == "ran"

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


@pytest.mark.parametrize(
    ("task", "while_busy"), [(fetch, during_another_hold), (order_once, during_another_run)]
)
class TestBusyRetries:
    """Of messages that go through a queue, in a worker's ``Request``."""

    def test_they_leave_no_max_retries_on_the_task(self, task, while_busy, deliver):
        result = task.delay()
        while_busy(deliver)
        assert state(result) == "RETRY"
        assert not hasattr(task, "override_max_retries")

    def test_they_are_not_counted(self, task, while_busy, deliver):
        counted = []
        task.delay()
        while_busy(lambda: counted.extend(deliver().headers["retries"] for _ in range(5)))
        assert counted == [0] * 5

    def test_errors_after_them_end_at_max_retries(self, task, while_busy, deliver):
        result = task.delay()
        while_busy(lambda: [deliver() for _ in range(5)])
        counted = [deliver().headers["retries"] for _ in range(4)]
        assert counted == [0, 1, 2, 3]
        assert state(result) == "FAILURE"
        with pytest.raises(queue.Empty):
            deliver()

    def test_errors_of_other_messages_end_at_max_retries(self, task, while_busy, deliver):
        task.delay()
        while_busy(deliver)
        worker.control.purge()
        result = task.delay()
        for _ in range(4):
            deliver()
        assert state(result) == "FAILURE"
        with pytest.raises(queue.Empty):
            deliver()

    def test_they_between_errors_keep_the_count(self, task, while_busy, deliver):
        result = task.delay()
        deliver()
        deliver()
        while_busy(lambda: [deliver() for _ in range(5)])
        assert [deliver().headers["retries"] for _ in range(2)] == [2, 3]
        assert state(result) == "FAILURE"


class TestBusyMessage:
    def test_it_is_sent_again_as_it_was(self, deliver):
        fetch_one.apply_async(
            (5,),
            queue="slow",
            priority=7,
            expires=3600,
            time_limit=90,
            soft_time_limit=60,
            headers={"tenant": "acme"},
            shadow="fetch for acme",
            link=add_up.si([1]),
            link_error=add_up.si([2]),
            root_id="root",
            parent_id="parent",
            group_id="group",
            group_index=3,
            chain=[add_up.si([3]).clone(task_id="next")],
            chord=add_up.s().clone(task_id="body"),
        )
        messages = []
        during_another_hold(lambda: messages.extend(deliver("slow") for _ in range(2)))
        first, second = messages
        assert second.payload == first.payload
        assert second.headers.pop("eta") is not None
        assert first.headers.pop("eta") is None
        assert second.headers == first.headers
        for name in ("correlation_id", "reply_to", "priority"):
            assert second.properties[name] == first.properties[name]

    def test_chain_goes_on_after_it(self, deliver):
        result = chain(fetch_one.s(5), add_up.si([4, 5]))()
        during_another_hold(deliver)
        deliver()
        deliver()
        assert result.get(timeout=1) == 9

    def test_chord_waits_for_it(self, deliver):
        result = (group(fetch_one.s(1), fetch_one.s(2)) | add_up.s())()
        during_another_hold(lambda: [deliver(), deliver()])
        assert state(result) == "PENDING"
        for _ in range(3):
            deliver()
        assert result.get(timeout=1) == 3

    def test_it_is_rejected_if_the_broker_is_away(self, monkeypatch):
        def send_task(*_, **__):
            raise OperationalError("no broker")

        monkeypatch.setattr(worker, "send_task", send_task)
        trace = build_tracer(fetch_one.name, fetch_one._get_current_object(), app=worker)
        outcomes = []
        request = {"id": "one", "delivery_info": {}}
        during_another_hold(lambda: outcomes.append(trace("one", (5,), {}, request)))
        [outcome] = outcomes
        assert outcome.info.state == "REJECTED"
        assert not outcome.info.retval.requeue


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

    def test_message_during_the_run_is_retried(self):
        def work(handle):
            with pytest.raises(Retry) as caught:
                charge.delay("o-2")
            return type(caught.value.exc).__name__

        name = f"{__name__}.charge"
        seen = run_once("celery", name, "o-2", work=work, mode="lease")
        assert seen == "IdempotencyInProgress"

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

    def test_run_that_was_taken_over_is_retried(self):
        """Another delivery of the same message does its work now, and will have its result."""

        @app.task
        @once_task(key=lambda: "slow", mode="lease")
        def slow(run):
            update("token = token + 1")
            with run.guard():
                raise AssertionError

        with pytest.raises(Retry) as caught:
            slow.delay()
        assert isinstance(caught.value.exc, IdempotencyInProgress)

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
