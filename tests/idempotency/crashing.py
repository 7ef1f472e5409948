"""Views whose first call stops at each step, so that its process can be ended there."""

import json

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse

from django_dblock import idempotent
from tests.app.idempotent_views import client
from tests.app.models import Document
from tests.idempotency.leasing import post


def create(request: HttpRequest) -> JsonResponse:
    """The effect, and an answer that tells whose it is."""
    return JsonResponse({"document": str(Document.objects.create().pk)}, status=201)


def complete(request: HttpRequest) -> JsonResponse:
    """The same in lease mode, after a step."""
    request.idempotency.run_step("charge", lambda: "charged")
    with transaction.atomic():
        return request.idempotency.complete(create(request))


def careless(request: HttpRequest) -> JsonResponse:
    """Effect and record each in a transaction of its own: a crash can come between them."""
    with transaction.atomic():
        return create(request)


VIEWS = {
    "atomic": idempotent(scope=client)(create),
    "lease": idempotent(scope=client, mode="lease")(complete),
    "careless": idempotent(scope=client, mode="lease")(careless),
    "unprotected": create,
}


def first_call(channel, name):
    """Stop before each statement, and before and after each COMMIT, until told that it is the last.

    Tells what comes next, and the backend.
    """
    connection.ensure_connection()
    stopping = True

    def stop(what):
        nonlocal stopping
        if stopping:
            channel.send((what, connection.connection.info.backend_pid))
            stopping = channel.receive()

    def execute(run, sql, parameters, many, context):
        stop(sql)
        return run(sql, parameters, many, context)

    original = connection._commit

    def commit():
        stop("before COMMIT")
        original()
        stop("after COMMIT")

    connection._commit = commit
    with connection.execute_wrapper(execute):
        return json.loads(post(VIEWS[name]).content)
