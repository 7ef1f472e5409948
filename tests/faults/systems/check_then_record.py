"""The recipe "look whether it was done; do it; write down that it was"."""

from django.db import transaction
from django.http import HttpRequest, HttpResponse

from tests.faults.models import Answered
from tests.faults.workloads.payments import charge

ERRORS = ()


@transaction.atomic
def pay(request: HttpRequest) -> HttpResponse:
    key = request.headers["Idempotency-Key"]
    if answered := Answered.objects.filter(key=key).first():
        return HttpResponse(answered.answer, status=201)
    response = charge(request)
    Answered.objects.create(key=key, answer=response.content.decode())
    return response
