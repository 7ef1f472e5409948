"""Misuse is refused when a view is decorated, not at the first request."""

import logging
from contextlib import contextmanager

import pytest
from django.db import transaction
from django.http import HttpResponse, JsonResponse
from django.test import RequestFactory

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import client

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("argument", ["x", 5, b"key", {"scope": 1}, object()])
def test_non_callable_is_refused_at_decoration(argument):
    with pytest.raises(TypeError, match="by name"):
        idempotent(argument)


def test_class_is_refused_at_decoration():
    with pytest.raises(TypeError, match="method"):

        @idempotent
        class View: ...


@pytest.mark.parametrize("kind", [staticmethod, classmethod, property])
def test_descriptor_is_refused_at_decoration(kind):
    with pytest.raises(TypeError):
        idempotent(kind(lambda request: None))


@pytest.mark.parametrize("option", ["scope", "key", "fingerprint", "keep"])
def test_non_callable_option_is_refused(option):
    with pytest.raises(TypeError, match=f"{option}="):
        idempotent(**{option: "x"})


@pytest.mark.parametrize("methods", ["PUT", [5]])
def test_methods_that_are_no_list_of_names_are_refused(methods):
    """Each letter of a string would be a method, and no request would be protected."""
    with pytest.raises(TypeError, match="methods="):
        idempotent(methods=methods)


def test_empty_methods_are_refused():
    with pytest.raises(ValueError, match="methods="):
        idempotent(methods=[])


def test_generator_is_refused_at_decoration():
    with pytest.raises(TypeError, match="generator"):

        @idempotent
        def view(request):
            yield b"x"


def test_async_generator_is_refused_at_decoration():
    with pytest.raises(TypeError, match="generator"):

        @idempotent(mode="lease")
        async def view(request):
            yield b"x"


def test_hidden_coroutine_is_refused_at_the_request():
    async def work(request):
        return HttpResponse()

    @idempotent(scope=client)
    def view(request):
        return work(request)

    request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
    with pytest.raises(TypeError, match="coroutine"):
        view(request)
    assert not IdempotencyKey.objects.exists()


class TestDurable:
    """A durable block is committed at its end; in atomic mode the decorator commits."""

    def test_durable_decorator_below_is_refused(self):
        with pytest.raises(TypeError, match="durable"):

            @idempotent
            @transaction.atomic(durable=True)
            def view(request): ...

    def test_durable_decorator_further_below_is_refused(self):
        with pytest.raises(TypeError, match="durable"):

            @idempotent
            @transaction.atomic
            @transaction.atomic(durable=True)
            def view(request): ...

    def test_durable_block_inside_is_refused(self):
        with pytest.raises(TypeError, match="durable"):

            @idempotent
            def view(request):
                with transaction.atomic(durable=True):
                    return HttpResponse()

    def test_block_in_a_helper_is_explained(self):
        def helper():
            with transaction.atomic(durable=True):
                return HttpResponse()

        @idempotent(scope=client)
        def view(request):
            return helper()

        with pytest.raises(RuntimeError) as raised:
            view(RequestFactory().post("/x/", headers={"Idempotency-Key": "k"}))
        assert "mode='lease'" in "".join(raised.value.__notes__)

    def test_other_runtime_errors_get_no_note(self):
        @idempotent(scope=client)
        def view(request):
            raise RuntimeError("durable")

        with pytest.raises(RuntimeError) as raised:
            view(RequestFactory().post("/x/", headers={"Idempotency-Key": "k"}))
        assert not hasattr(raised.value, "__notes__")

    def test_other_context_managers_are_allowed(self):
        """A decorator of contextlib's that is no transaction."""

        @contextmanager
        def timed():
            yield

        @idempotent(scope=client)
        @timed()
        def view(request):
            return HttpResponse(b"done")

        request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
        assert view(request).content == b"done"

    def test_lease_mode_allows_durable_blocks(self):
        @idempotent(scope=client, mode="lease")
        @transaction.atomic(durable=True)
        def view(request):
            return HttpResponse(b"done")

        request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
        assert view(request).content == b"done"

    def test_ordinary_block_is_allowed(self):
        @idempotent(scope=client)
        def view(request):
            with transaction.atomic(savepoint=True, using="default"):
                return HttpResponse(b"done")

        request = RequestFactory().post("/x/", headers={"Idempotency-Key": "k"})
        assert view(request).content == b"done"


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_why_a_response_is_unstorable(settings, debug, caplog):
    settings.DEBUG = debug
    caplog.set_level(logging.CRITICAL)

    @idempotent(scope=client)
    def view(request):
        return JsonResponse({"secret": "x" * 1024 * 1024})

    response = view(RequestFactory().post("/x/", headers={"Idempotency-Key": "k"}))
    assert response.status_code == 500
    assert (b"DBLOCK_IDEMPOTENCY_MAX_BODY" in response.content) is debug
    assert b"could not be kept" in response.content
