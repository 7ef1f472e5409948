"""Authorisation below ``@idempotent`` is not asked on a replay: W033 finds it, and only it."""

import types
from functools import partial, partialmethod
from itertools import count
from typing import Any, NamedTuple

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.mixins import (
    AccessMixin,
    LoginRequiredMixin,
    PermissionRequiredMixin,
    UserPassesTestMixin,
)
from django.contrib.auth.models import Permission, User
from django.core import checks
from django.http import HttpResponse, JsonResponse
from django.test import AsyncClient, Client
from django.urls import clear_url_caches, include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view
from rest_framework.permissions import AllowAny, BasePermission
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from django_dblock import IdempotencyKey, idempotent
from django_dblock.checks.views import check_order
from tests.app.idempotent_views import add_one, client
from tests.helpers.registered import tags_of

pytestmark = pytest.mark.django_db(transaction=True)

once = idempotent(scope=client)
allowed = permission_required("app.add_counter", raise_exception=True)
staff = staff_member_required(login_url="/login/")
trusted = user_passes_test(lambda user: user.is_staff)

NUMBERS = count()


def pay(request, **kwargs):
    return JsonResponse({"value": add_one()}, status=201)


async def apay(request):
    return await sync_to_async(pay)(request)


def api_pay(request):
    return Response({"value": add_one()}, status=201)


class Pay(View):
    def post(self, request):
        return pay(request)


class May(PermissionRequiredMixin):
    permission_required = "app.add_counter"
    raise_exception = True


class Trusted(UserPassesTestMixin):
    def test_func(self):
        return self.request.user.is_staff


class Own(AccessMixin):
    """A project's own mixin, with a dispatch() of its own."""

    def dispatch(self, request, *args, **kwargs):
        if not request.user.is_staff:
            return self.handle_no_permission()
        return super().dispatch(request, *args, **kwargs)


class OnceDispatch(View):
    """A base class that protects whatever comes below."""

    @once
    def dispatch(self, request, *args, **kwargs):
        return super().dispatch(request, *args, **kwargs)


class MayAdd(BasePermission):
    def has_permission(self, request, view):
        return request.user.has_perm("app.add_counter")


class Opaque:
    """A decorator that does not say what it wraps."""

    def __init__(self, view):
        self.view = view

    def __call__(self, request):
        return self.view(request)


def made(*bases, **methods):
    return type(f"Made{next(NUMBERS)}", bases, methods)


def on_dispatch(decorators, *bases):
    return method_decorator(decorators, name="dispatch")(made(*bases))


def on_post(decorators, *bases):
    return method_decorator(decorators, name="post")(made(*bases))


def post(self, request):
    return pay(request)


def calling_super(self, request):
    return super(type(self), self).post(request)


def dispatching(self, request):
    return super(type(self), self).dispatch(request)


def ending(self, request):
    """A dispatch() that asks no parent."""
    return pay(request)


dispatching.__name__ = ending.__name__ = "dispatch"


class Wrong(NamedTuple):
    view: Any
    names: str
    above: bool = False
    """Whether it is mended by putting what asks above ``@idempotent``."""


SERVED = {
    "permission": Wrong(once(allowed(pay)), "permission_required", above=True),
    "staff": Wrong(once(staff(pay)), "staff_member_required", above=True),
    "test": Wrong(once(trusted(pay)), "user_passes_test", above=True),
    "two": Wrong(
        once(login_required(never_cache(allowed(pay)))),
        "login_required and permission_required",
        above=True,
    ),
    "one above": Wrong(login_required(once(allowed(pay))), "permission_required", above=True),
    "far above": Wrong(csrf_exempt(once(never_cache(allowed(pay)))), "permission_required", True),
    "partial": Wrong(partial(once(allowed(pay)), more=1), "permission_required", above=True),
    "as_view": Wrong(once(allowed(Pay.as_view())), "permission_required", above=True),
    "as_view of dispatch": Wrong(
        once(on_dispatch(allowed, Pay).as_view()), "permission_required", above=False
    ),
    "list on dispatch": Wrong(
        on_dispatch([once, allowed], Pay).as_view(), "permission_required", above=True
    ),
    "dispatch of a parent": Wrong(
        on_dispatch(once, on_dispatch(allowed, Pay)).as_view(), "permission_required", above=True
    ),
    "super().dispatch()": Wrong(
        made(on_dispatch(allowed, Pay), dispatch=once(dispatching)).as_view(),
        "permission_required",
    ),
    "dispatch over post": Wrong(
        on_dispatch(once, on_post(allowed, Pay)).as_view(), "permission_required"
    ),
    "list on post": Wrong(
        on_post([once, allowed], Pay).as_view(), "permission_required", above=True
    ),
    "post": Wrong(
        made(View, post=once(method_decorator(allowed)(post))).as_view(),
        "permission_required",
        above=True,
    ),
    "super().post()": Wrong(
        made(on_post(allowed, Pay), post=once(calling_super)).as_view(), "permission_required"
    ),
    "api_view": Wrong(
        api_view(["POST"])(once(allowed(api_pay))), "permission_required", above=True
    ),
}  # fmt: skip

REFUSED = {
    "permission": Wrong(on_dispatch(once, May, Pay).as_view(), "PermissionRequiredMixin"),
    "login": Wrong(on_dispatch(once, LoginRequiredMixin, Pay).as_view(), "LoginRequiredMixin"),
    "test": Wrong(on_dispatch(once, Trusted, Pay).as_view(), "UserPassesTestMixin"),
    "own": Wrong(on_dispatch(once, Own, Pay).as_view(), "Own"),
    "with another between": Wrong(
        on_dispatch([once, csrf_exempt, never_cache], May, Pay).as_view(), "PermissionRequiredMixin"
    ),
    "before the mixin": Wrong(made(OnceDispatch, May, Pay).as_view(), "PermissionRequiredMixin"),
    "on the method": Wrong(
        made(May, Pay, dispatch=once(dispatching)).as_view(), "PermissionRequiredMixin"
    ),
    "rest framework": Wrong(
        on_dispatch(once, made(APIView, post=post, permission_classes=(MayAdd,))).as_view(),
        "APIView",
    ),
    "viewset": Wrong(
        on_dispatch(
            once, made(ViewSet, create=post, permission_classes=(MayAdd,))
        ).as_view({"post": "create"}),
        "APIView",
    ),
}  # fmt: skip

RIGHT = {
    "permission": allowed(once(pay)),
    "staff": staff(once(pay)),
    "two": login_required(never_cache(allowed(csrf_exempt(once(pay))))),
    "as_view": allowed(Pay.as_view()),
    "around as_view": allowed(once(Pay.as_view())),
    "dispatch": on_dispatch(allowed, on_post(once, Pay)).as_view(),
    "list on dispatch": on_dispatch([allowed, once], Pay).as_view(),
    "list on post": on_post((allowed, once), Pay).as_view(),
    "mixin and post": on_post(once, made(May, View, post=post)).as_view(),
    "test and post": made(Trusted, View, post=once(post)).as_view(),
    "own and post": made(Own, View, post=once(post)).as_view(),
    "mixin before dispatch": made(May, OnceDispatch, post=post).as_view(),
    "api_view": api_view(["POST"])(allowed(once(api_pay))),
    "rest framework": made(
        APIView, post=once(lambda self, request: api_pay(request)), permission_classes=(MayAdd,)
    ).as_view(),
}  # fmt: skip


@pytest.fixture
def found(settings):
    def check(*views):
        urls = types.ModuleType("urls")
        urls.urlpatterns = [path("pay/", include([path("", views[0])]))]
        urls.urlpatterns += [path(f"{n}/", view) for n, view in enumerate(views)]
        settings.ROOT_URLCONF = urls
        clear_url_caches()
        return check_order()

    return check


@pytest.fixture
def ann():
    user = User.objects.create(username="ann", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="add_counter"))
    return user


@pytest.fixture
def send(ann):
    browser = Client(raise_request_exception=False)
    browser.force_login(ann)

    def send():
        headers = {"Idempotency-Key": "k", "X-Client": "ann"}
        return browser.post("/pay/", "{}", "application/json", headers=headers)

    return send


def revoke(user):
    user.user_permissions.clear()
    User.objects.update(is_staff=False)


def is_replay(response):
    return response.headers.get("Idempotent-Replayed") == "true"


def test_check_is_registered():
    assert tags_of(check_order) == (checks.Tags.urls,)


@pytest.mark.parametrize("case", SERVED.values(), ids=SERVED)
def test_w033_finds_authorisation_that_a_replay_skips(case, found, send, ann):
    """The replay is given after the permission is gone: so it is worth a warning."""
    [message] = found(case.view)
    assert message.id == "dblock.W033"
    assert f"around {case.names}:" in message.msg
    assert (f"Put {case.names} above @idempotent" in message.hint) is case.above
    assert case.above or message.hint.endswith(f"below {case.names}.")
    assert send().status_code == 201
    revoke(ann)
    again = send()
    assert again.status_code == 201
    assert is_replay(again)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_w033_finds_authorisation_in_dispatch(case, found, send):
    """A class that decides in dispatch() is not served at all, so a replay can't go past it."""
    [message] = found(case.view)
    assert message.id == "dblock.W033"
    assert f"around {case.names}:" in message.msg
    assert message.hint.startswith("Put @idempotent on the view's method")
    assert send().status_code == 500
    assert not IdempotencyKey.objects.exists()


@pytest.mark.parametrize("view", RIGHT.values(), ids=RIGHT)
def test_right_order_has_no_warning(view, found, send, ann):
    assert found(view) == []
    assert send().status_code == 201
    revoke(ann)
    refused = send()
    assert refused.status_code in (302, 403)
    assert not is_replay(refused)


@pytest.mark.parametrize("wrong", [True, False])
def test_w033_finds_authorisation_below_an_async_view(wrong, found, ann):
    leased = idempotent(scope=client, mode="lease")
    messages = found(leased(allowed(apay)) if wrong else allowed(leased(apay)))
    assert ["around permission_required:" in message.msg for message in messages] == [True] * wrong
    browser = AsyncClient()
    browser.force_login(ann)
    headers = {"Idempotency-Key": "k", "X-Client": "ann"}
    answers = []
    for _ in range(2):
        answers.append(async_to_sync(browser.post)("/pay/", headers=headers))
        revoke(ann)
    assert [answer.status_code for answer in answers] == [201, 201 if wrong else 403]
    assert is_replay(answers[1]) is wrong


def test_w033_names_the_view(found):
    here = __name__

    class Inner(Pay):
        post = once(method_decorator(allowed)(Pay.post))

    names = [message.obj for message in found(once(allowed(pay)), Inner.as_view())]
    assert names == [f"{here}.pay", f"{here}.{Inner.__qualname__}.post"]


def test_unprotected_method_may_authorise_below(found):
    class Reads(OnceDispatch):
        @method_decorator(login_required)
        def get(self, request): ...

    assert found(Reads.as_view()) == []


def test_uncalled_parent_method_is_ignored(found):
    over = made(on_dispatch(allowed, Pay), dispatch=once(ending))
    assert found(over.as_view()) == []


@pytest.mark.parametrize(
    "view",
    [
        Opaque(once(allowed(pay))),
        once(Opaque(allowed(pay))),
        made(View, post=partialmethod(once(allowed(pay)))).as_view(),
        on_post([once, Opaque], Pay).as_view(),
        made(APIView, post=lambda self, request: HttpResponse(), permission_classes=(AllowAny,))
        .as_view(),
    ],
)  # fmt: skip
def test_opaque_decorators_are_ignored(view, found):
    assert found(view) == []


def test_opaque_class_is_refused(found, send):
    inner = once(dispatching)

    def dispatch(self, request):
        return inner(self, request)

    view = made(May, Pay, dispatch=dispatch).as_view()
    assert found(view) == []
    assert send().status_code == 500
    assert not IdempotencyKey.objects.exists()


def test_project_without_urls_has_no_warning(settings):
    settings.ROOT_URLCONF = None
    assert check_order() == []
