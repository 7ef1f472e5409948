"""Ours: ``@idempotent(mode="lease")``; a lease is as short as the others'."""

from django.http import HttpRequest, HttpResponse

from django_dblock import idempotent
from tests.faults.plan import TTL
from tests.faults.workloads.acquirer import settle

ERRORS = ()


@idempotent(scope=lambda _: "acquirer", mode="lease", lease=TTL)
def pay(request: HttpRequest) -> HttpResponse:
    return settle(request)
