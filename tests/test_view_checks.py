"""Checks of views: each planted fault is found, and a sound project is left alone."""

import types

import pytest
from django.core import checks
from django.db import connection, connections, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import clear_url_caches, include, path
from django.utils.decorators import method_decorator
from django.utils.functional import classproperty
from django.views import View

from django_dblock import advisory_lock, fenced_lock, idempotent
from django_dblock.checks.views import check_guards
from tests.helpers.registered import tags_of


@idempotent(mode="lease")
def leased(request):
    return HttpResponse()


@idempotent
def atomic(request):
    return HttpResponse()


@fenced_lock("a", ttl=30)
def fenced(request):
    return HttpResponse()


@fenced_lock("a", ttl=30)
async def fenced_async(request):
    return HttpResponse()


@idempotent(mode="lease", using="other")
def elsewhere(request):
    return HttpResponse()


class Pay(View):
    @idempotent(mode="lease")
    def post(self, request):
        return HttpResponse()


@method_decorator(fenced_lock("a", ttl=30), name="dispatch")
class Wrapped(View):
    pass


@advisory_lock("a")
def streaming(request):
    return StreamingHttpResponse([b"a"])


@advisory_lock("a")
@idempotent
def sending(request):
    return FileResponse()


def plain(request):
    return StreamingHttpResponse([b"a"])


class Callable:
    """A view need be no function."""

    def __call__(self, request):
        return HttpResponse()


@pytest.fixture
def found(settings, monkeypatch):
    def check(*views, atomic_requests=False):
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic_requests)
        urls = types.ModuleType("urls")
        urls.urlpatterns = [
            path("a/", include([path(f"{n}/", view) for n, view in enumerate(views)])),
            path("again/", views[0]),
        ]
        settings.ROOT_URLCONF = urls
        clear_url_caches()
        return [(message.id, message.obj.rpartition(".")[2]) for message in check_guards()]

    return check


def test_checks_are_registered():
    assert tags_of(check_guards) == (checks.Tags.urls,)


def test_correct_project_has_no_message(found, settings):
    assert found(leased, atomic, fenced, Pay.as_view(), plain, Callable()) == []
    settings.ROOT_URLCONF = None
    assert check_guards() == []


@pytest.mark.parametrize(
    ("view", "name"),
    [
        (fenced, "fenced"),
        (fenced_async, "fenced_async"),
        (Pay.as_view(), "post"),
        (Wrapped.as_view(), "dispatch"),
    ],
)
def test_w031_finds_views_inside_a_transaction(view, name, found):
    assert ("dblock.W031", name) in found(view, atomic_requests=True)
    exempt = transaction.non_atomic_requests(view)
    try:
        assert found(exempt, atomic_requests=True) == []
    finally:
        del exempt._non_atomic_requests


def test_w031_spares_allowed_and_exempt_views(found):
    assert found(leased, atomic, elsewhere, plain, atomic_requests=True) == []


class Elsewhere:
    def db_for_write(self, model, **hints):
        return "other"


def test_w031_looks_at_the_alias_of_the_routers(found, settings, monkeypatch):
    settings.DATABASE_ROUTERS = [Elsewhere()]
    assert found(fenced, Pay.as_view(), atomic_requests=True) == []
    monkeypatch.setitem(connections["other"].settings_dict, "ATOMIC_REQUESTS", True)
    assert found(fenced, Pay.as_view()) == [("dblock.W031", "fenced"), ("dblock.W031", "post")]


def test_w032_finds_streams_sent_after_the_lock(found):
    assert found(streaming, plain) == [("dblock.W032", "streaming")]


def test_w032_finds_unstorable_streams(found):
    assert found(sending) == [("dblock.W032", "sending")] * 2
    texts = [message.msg for message in check_guards()]
    assert "can't be stored" in texts[0]
    assert "after the lock was released" in texts[1]


def test_properties_are_not_evaluated(found):
    class Loud(View):
        @classproperty
        def queryset(cls):  # noqa: N805 - Django's
            raise AssertionError("a system check has run it")

    assert found(Loud.as_view()) == []
