"""Views whose requests happen once."""

from django.db import IntegrityError, transaction
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)

from django_dblock import idempotent
from tests.app.models import Counter


def client(request: HttpRequest) -> str:
    return request.headers.get("X-Client", "client")


def add_one() -> int:
    counter, _ = Counter.objects.get_or_create(name="effects")
    counter.value += 1
    counter.save()
    return counter.value


ANSWERS = {}
"""What the view ``answers`` is told to do, by name."""


def answers(request: HttpRequest, how: str) -> HttpResponse:
    """Count, then answer as the address says."""
    value = add_one()
    if how.isdigit():
        response = JsonResponse({"value": value}, status=int(how))
        response.headers["Location"] = f"/effects/{value}/"
        response.headers["X-Other"] = "not kept"
        response.set_cookie("basket", "17")
        return response
    return ANSWERS[how](request, value)


def _raises(error):
    def answer(request, value):
        raise error

    return answer


def _swallows(status):
    def answer(request, value):
        try:
            Counter.objects.create(name="effects")
        except IntegrityError:
            return HttpResponse(b"swallowed", status=status)

    return answer


def _rolls_back(request, value):
    transaction.set_rollback(True)
    return HttpResponse(b"rolled back")


def _nested(request, value):
    """It calls another idempotent view with the same request: one request, one run."""
    return default(request, "201")


ANSWERS.update(
    {
        "http404": _raises(Http404("gone")),
        "crash": _raises(RuntimeError("crash")),
        "stream": lambda request, value: StreamingHttpResponse([b"x"]),
        "large": lambda request, value: HttpResponse(b"x" * (1024 * 1024 + 1)),
        "nothing": lambda request, value: None,
        "redirect": lambda request, value: HttpResponseRedirect("/somewhere/"),
        "swallowed-409": _swallows(409),
        "swallowed-200": _swallows(200),
        "set-rollback": _rolls_back,
        "nested": _nested,
        "bell": lambda request, value: HttpResponse(headers={"Link": "a\x07b"}),
    }
)

default = idempotent(scope=client)(answers)
by_user = idempotent(answers)
