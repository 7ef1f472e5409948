"""Async views and work, in lease mode."""

import asyncio
import json

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpResponse, JsonResponse

from django_dblock import IdempotencyKey, arun_once, idempotent, signals
from django_dblock.exceptions import IdempotencyInProgress, IdempotencyLeaseLost
from django_dblock.idempotency.lease_mode import Run
from tests.app.idempotent_views import add_one, client
from tests.helpers.cancelling import cancel
from tests.idempotency.aleasing import leased, post, request
from tests.idempotency.leasing import effects, expire, row, update

pytestmark = pytest.mark.django_db(transaction=True)


async def effect(request=None):
    return JsonResponse({"value": await sync_to_async(add_one)()}, status=201)


def code(response):
    return json.loads(response.content)["code"]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("sent", [{"key": None}, {"method": "GET"}], ids=["no key", "GET"])
def test_guard_of_an_unprotected_run_uses_the_views_database(sent):
    async def work(request):
        def guarded():
            with request.idempotency.guard():
                return [each.alias for each in connections.all() if each.in_atomic_block]

        return JsonResponse(await sync_to_async(guarded)(), safe=False)

    answer = post(leased(work, required=False, using="other"), **sent)
    assert json.loads(answer.content) == ["other"]


def test_retry_gets_the_first_response():
    view = leased(effect)
    first, again = post(view), post(view)
    assert (first.status_code, first.content) == (201, again.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert effects() == 1


def test_next_run_resumes_after_recorded_steps():
    calls, tokens = [], []

    async def call():
        calls.append(1)
        return (1, 2)

    async def work(request):
        handle = request.idempotency
        assert await handle.arun_step("a", call) == [1, 2]
        async with handle.step("b") as step:
            if not step.done:
                step.result = "b"
        tokens.append(handle.token)
        if len(tokens) == 1:
            raise RuntimeError
        return await handle.acomplete(HttpResponse(step.result))

    view = leased(work)
    with pytest.raises(RuntimeError):
        post(view)
    assert post(view).content == post(view).content == b"b"
    assert calls == [1]


@pytest.mark.parametrize(
    ("policy", "status", "told"), [("takeover", 201, None), ("refuse", 409, "abandoned")]
)
def test_cancellation_in_a_step_keeps_the_claim(policy, status, told):
    """Its claim stays until its lease ends. Under refuse nobody knows what the step has done."""

    async def work(request):
        async with request.idempotency.step("a"):
            asyncio.current_task().cancel()
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        post(leased(work, on_abandoned=policy))
    assert code(post(leased(effect, on_abandoned=policy))) == "in_progress"
    expire()
    again = post(leased(effect, on_abandoned=policy))
    assert (again.status_code, json.loads(again.content).get("code")) == (status, told)


@pytest.mark.parametrize("moment", ["begin", "finish"])
def test_cancellation_leaves_no_half_written_row(moment, monkeypatch):
    """What is on its way to the database arrives: the claim is given up, the answer is kept."""
    original = getattr(Run, moment)

    async def cancelled():
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def during(*arguments):
            cancel(task, loop)
            return original(*arguments)

        monkeypatch.setattr(Run, moment, during)
        await leased(effect)(request())

    with pytest.raises(asyncio.CancelledError):
        async_to_sync(cancelled)()
    monkeypatch.setattr(Run, moment, original)
    assert effects() == (moment == "finish")
    assert post(leased(effect)).content == b'{"value": 1}'
    assert effects() == 1


def test_cancellation_while_a_failed_run_is_given_up_stays_one(monkeypatch):
    original = Run.try_to_give_up

    async def fail(request):
        raise ZeroDivisionError

    async def cancelled():
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def give_up(*arguments):
            cancel(task, loop)
            return original(*arguments)

        monkeypatch.setattr(Run, "try_to_give_up", give_up)
        await leased(fail)(request())

    with pytest.raises(asyncio.CancelledError) as caught:
        async_to_sync(cancelled)()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert post(leased(effect)).content == b'{"value": 1}'


@pytest.mark.parametrize("what", ["fails", "loses its claim"])
def test_cancellation_of_a_run_without_success_stays_one(what):
    """As when its client has gone. A caller that catches the error must not go on."""

    async def cancelled():
        caller = asyncio.current_task()

        async def work(asked):
            caller.cancel()
            await asyncio.sleep(0)
            if what == "loses its claim":
                await sync_to_async(update)("token = token + 1")
                await asked.idempotency.acomplete(HttpResponse())
            raise ZeroDivisionError

        await leased(work)(request())

    with pytest.raises(asyncio.CancelledError) as caught:
        async_to_sync(cancelled)()
    error = ZeroDivisionError if what == "fails" else IdempotencyLeaseLost
    assert isinstance(caught.value.__cause__, error)
    again = post(leased(effect))
    assert again.status_code == (201 if what == "fails" else 409)


@pytest.fixture
def looked(monkeypatch):
    """How often a run has looked, and found another at work; ``await looked(n)`` waits for it."""
    original, count = Run.delay, []

    def delay(self, begun):
        count.append(begun)
        return original(self, begun)

    async def looked(number):
        while len(count) < number:  # noqa: ASYNC110 - no event of ours
            await asyncio.sleep(0)

    monkeypatch.setattr(Run, "delay", delay)
    return looked


def test_cancelled_wait_runs_nothing(looked):
    async def work(asked):
        task = asyncio.ensure_future(leased(effect, wait=60)(request()))
        await looked(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return HttpResponse(b"first")

    assert post(leased(work)).content == b"first"
    assert effects() == 0


def test_cancellation_during_the_first_look_runs_nothing(monkeypatch):
    """It finds another at work, and has nothing to give up."""
    original = Run.begin

    async def work(asked):
        task = asyncio.ensure_future(leased(effect, wait=60)(request()))
        loop = asyncio.get_running_loop()

        def begin(self):
            cancel(task, loop)
            return original(self)

        monkeypatch.setattr(Run, "begin", begin)
        with pytest.raises(asyncio.CancelledError):
            await task
        return HttpResponse(b"first")

    assert post(leased(work)).content == b"first"
    assert effects() == 0


def test_running_request_is_409_or_awaited(looked):
    async def work(asked):
        twin = await leased(effect)(request())
        assert twin.headers["Retry-After"] == "5"
        waiting.append(asyncio.ensure_future(leased(effect, wait=60)(request())))
        await looked(3)
        return HttpResponse(code(twin))

    waiting = []

    async def both():
        first = await leased(work)(request())
        return first, await waiting[0]

    first, second = async_to_sync(both)()
    assert first.content == second.content == b"in_progress"
    assert second.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("what", ["raised", "swallowed", "unnoticed"])
def test_stale_run_gets_the_winners_response(what):
    async def zombie(asked):
        await sync_to_async(expire)()
        await leased(effect)(request())
        if what != "unnoticed":
            try:
                await asked.idempotency.acomplete(HttpResponse(b"zombie"))
            except IdempotencyLeaseLost:
                if what == "raised":
                    raise
        return HttpResponse(b"zombie")

    assert post(leased(zombie)).content == b'{"value": 1}'
    assert bytes(row().body) == b'{"value": 1}'


def test_scope_is_the_logged_in_user():
    user = get_user_model().objects.create_user("somebody")
    assert post(leased(effect, scope=None), user=user).status_code == 201
    assert row().scope == f"user:{user.pk}"


def test_anonymous_client_has_no_scope():
    with pytest.raises(ImproperlyConfigured):
        post(leased(effect, scope=None))


def test_scope_may_be_awaited():
    async def scope(request):
        return "awaited"

    post(leased(effect, scope=scope))
    assert row().scope == "scope:awaited"


def test_no_key_or_other_method_runs_unprotected():
    view = leased(effect, required=False)
    assert post(view, key=None).status_code == post(view, method="GET").status_code == 201
    assert not IdempotencyKey.objects.exists()


def test_missing_required_key_is_refused():
    assert code(post(leased(effect), key=None)) == "key_missing"
    assert effects() == 0


def test_nested_protected_view_is_one_run():
    assert post(leased(leased(effect))).status_code == 201
    assert IdempotencyKey.objects.count() == 1


def test_second_view_of_a_request_gets_no_response_of_the_first():
    @idempotent(scope=client, mode="lease")
    async def ship(request):
        raise NotImplementedError

    async def both(asked):
        for _ in range(2):
            assert (await leased(effect)(asked)).content == b'{"value": 1}'
        with pytest.raises(ImproperlyConfigured, match="ship was called"):
            await ship(asked)

    async_to_sync(both)(request())
    assert effects() == 1


def test_store_5xx_keeps_an_error():
    async def work(request):
        await sync_to_async(add_one)()
        raise RuntimeError

    view = leased(work, store_5xx=True)
    assert post(view).status_code == post(view).status_code == 500
    assert effects() == 1


def test_bare_decorator_on_an_async_view_is_refused():
    with pytest.raises(TypeError, match="lease"):

        @idempotent
        async def view(request): ...


def test_receivers_of_its_signals_may_use_the_database():
    found = []

    def count(**facts):
        found.append(IdempotencyKey.objects.count())

    async def acount(**facts):
        found.append(await IdempotencyKey.objects.acount())

    for receiver in (count, acount):
        signals.idempotent_executed.connect(receiver)
    try:
        post(leased(effect))
        async_to_sync(arun_once)("a", work=value)
    finally:
        for receiver in (count, acount):
            signals.idempotent_executed.disconnect(receiver)
    assert found == [1, 1, 2, 2]


async def value(handle):
    return {"value": await sync_to_async(add_one)()}


def test_arun_once_runs_once():
    results = [async_to_sync(arun_once)("a", 1, work=value) for _ in range(2)]
    assert results == [{"value": 1}] * 2


def test_arun_once_raises_while_another_runs():
    async def work(handle):
        with pytest.raises(IdempotencyInProgress):
            await arun_once("a", work=value)
        return "first"

    assert async_to_sync(arun_once)("a", work=work) == "first"
