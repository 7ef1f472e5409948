"""Ours: ``@idempotent``, in atomic mode."""

from django.http import HttpRequest, HttpResponse

from django_dblock import idempotent
from tests.faults.workloads.payments import charge

ERRORS = ()


@idempotent(scope=lambda _: "payments", wait=1)
def pay(request: HttpRequest) -> HttpResponse:
    return charge(request)
