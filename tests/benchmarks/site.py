"""The addresses: the view of ``once`` behind a session, a login and the CSRF check; the admin."""

import functools

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.http import require_POST

from django_dblock import idempotent
from tests.benchmarks import once


@login_required
@require_POST
@transaction.atomic
def bare(request: HttpRequest) -> HttpResponse:
    return once.paid("default", request)


@login_required
@require_POST
def by_hand(request: HttpRequest) -> HttpResponse:
    return _by_hand()(request)


@functools.cache
def _by_hand() -> once.View:
    return once.by_hand("default")


@login_required
@require_POST
@idempotent
def protected(request: HttpRequest) -> HttpResponse:
    return once.paid("default", request)


urlpatterns = [
    path("bare/", bare),
    path("by-hand/", by_hand),
    path("protected/", protected),
    path("admin/", admin.site.urls),
]
