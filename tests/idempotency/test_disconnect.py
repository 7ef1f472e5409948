"""A client that hangs up, as Django's ASGI handler tells an async view in lease mode."""

import asyncio

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.db.models.functions import Now
from django.http import JsonResponse
from django.urls import path

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one, client
from tests.helpers import observe
from tests.idempotency.leasing import effects, expire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class Moments:
    """What a test and the view wait for; made anew in each loop."""

    def __init__(self):
        self.committed = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()


async def pay(request):
    """Commit, wait for the outside world, commit again."""
    moments = MOMENTS[0]
    value = await sync_to_async(add_one)()
    moments.committed.set()
    try:
        await moments.go_on.wait()
    except asyncio.CancelledError:
        moments.cancelled.set()
        raise
    return JsonResponse({"value": value}, status=201)


MOMENTS = []

urlpatterns = [
    path("shielded/", idempotent(scope=client, mode="lease")(pay)),
    path("short/", idempotent(scope=client, mode="lease", lease=0.5)(pay)),
    path("unprotected/", pay),
]


def scope(place):
    return {
        "type": "http",
        "method": "POST",
        "path": f"/{place}/",
        "query_string": b"",
        "headers": [(b"idempotency-key", b"k"), (b"content-type", b"application/json")],
    }


async def connected(place):
    """Send a request, and come back when the view has committed its first effect."""
    MOMENTS[:] = [Moments()]
    communicator = ApplicationCommunicator(ASGIHandler(), scope(place))
    await communicator.send_input({"type": "http.request", "body": b"{}"})
    await MOMENTS[0].committed.wait()
    return communicator


async def ask(place):
    """The client's retry, answered without a wait."""
    MOMENTS[:] = [Moments()]
    MOMENTS[0].go_on.set()
    communicator = ApplicationCommunicator(ASGIHandler(), scope(place))
    await communicator.send_input({"type": "http.request", "body": b"{}"})
    start = await communicator.receive_output(60)
    body = await communicator.receive_output(60)
    await communicator.wait(60)
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, body["body"]


@pytest.fixture(autouse=True)
def _close(monkeypatch):
    """The handler's threads have connections of their own; each is closed with its request."""
    for alias in ("default", "other"):
        monkeypatch.setitem(connections[alias].settings_dict, "CONN_MAX_AGE", 0)


def test_view_continues_after_a_disconnect():
    async def scenario():
        communicator = await connected("shielded")
        moments = MOMENTS[0]
        await communicator.send_input({"type": "http.disconnect"})
        status, headers, _ = await ask("shielded")
        assert (status, "retry-after" in headers) == (409, True), "it is still at work"
        assert not moments.cancelled.is_set()
        moments.go_on.set()
        await communicator.wait(60)
        return await ask("shielded")

    status, headers, body = async_to_sync(scenario)()
    assert (status, body, headers["idempotent-replayed"]) == (201, b'{"value": 1}', "true")
    assert effects() == 1


def test_shield_ends_with_the_lease():
    """A view that hangs is cancelled then; another run takes over."""

    async def scenario():
        communicator = await connected("short")
        moments = MOMENTS[0]
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait(60)
        assert moments.cancelled.is_set()
        over = IdempotencyKey.objects.filter(locked_until__lte=Now())
        await sync_to_async(observe.until)(over.exists, "the lease ends by the server's clock, too")
        return await ask("short")

    status, headers, body = async_to_sync(scenario)()
    assert (status, body, "idempotent-replayed" in headers) == (201, b'{"value": 2}', False)


def test_cancelled_run_keeps_its_claim_until_its_lease_ends():
    """Whatever it has started in a thread may still be running."""

    @idempotent(scope=client, mode="lease")
    async def view(request):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    from tests.idempotency.leasing import request

    with pytest.raises(asyncio.CancelledError):
        async_to_sync(view)(request())
    row = IdempotencyKey.objects.get()
    assert row.completed_at is None
    assert row.locked_until is not None
    again = async_to_sync(idempotent(scope=client, mode="lease")(effect))(request())
    assert again.status_code == 409
    expire()
    again = async_to_sync(idempotent(scope=client, mode="lease")(effect))(request())
    assert again.status_code == 201


async def effect(request):
    return JsonResponse({"value": await sync_to_async(add_one)()}, status=201)


def test_context_variables_of_the_view_reach_the_middleware():
    """The view runs in a task of its own; what it sets is not lost there."""
    from contextvars import ContextVar

    found = ContextVar("found", default="before")

    @idempotent(scope=client, mode="lease")
    async def view(request):
        found.set("by the view")
        return JsonResponse({})

    async def scenario():
        from tests.idempotency.leasing import request

        await view(request())
        return found.get()

    assert async_to_sync(scenario)() == "by the view"


def test_unprotected_view_is_cancelled():
    """The negative twin: what Django does to a view without the decorator."""

    async def scenario():
        communicator = await connected("unprotected")
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait(60)
        assert MOMENTS[0].cancelled.is_set()

    async_to_sync(scenario)()
