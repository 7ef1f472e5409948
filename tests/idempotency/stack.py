"""A URLconf with what stands above a view: who may come in, and how often."""

from django.contrib.auth.decorators import login_required, permission_required
from django.http import HttpResponse, JsonResponse
from django.urls import path
from rest_framework import throttling
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response

from django_dblock import idempotent
from tests.app.idempotent_matrix import Api, MayPay
from tests.app.idempotent_views import add_one, client, default
from tests.idempotency import pages

FULL = []
"""Not empty while nobody is let in."""


def throttle(view):
    def guarded(request):
        return HttpResponse(status=429) if FULL else view(request)

    return guarded


class Throttle(throttling.BaseThrottle):
    def allow_request(self, request, view):
        return not FULL


def pay(request):
    return JsonResponse({"value": add_one()}, status=201)


class ApiPay(Api):
    permission_classes = (IsAuthenticated, MayPay)
    throttle_classes = (Throttle,)

    @idempotent
    def post(self, request):
        return Response({"value": add_one()}, status=201)


urlpatterns = [
    path("table/<str:how>/", default),
    path("optional/<str:how>/", pages.optional),
    path("members/", login_required(idempotent(pay))),
    path(
        "permitted/", permission_required("app.add_counter", raise_exception=True)(idempotent(pay))
    ),
    path("throttled/", throttle(idempotent(scope=client)(pay))),
    path("form/", idempotent(scope=client)(pay)),
    path("api/", ApiPay.as_view()),
]
