"""Read-modify-write in views, each locked in one of the ways that views are written."""

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views import View

from django_dblock import advisory_lock
from tests.app.models import Counter


def add_one(name: str) -> HttpResponse:
    counter = Counter.objects.get(name=name)
    counter.value += 1
    counter.save()
    return HttpResponse(str(counter.value))


def hit(request: HttpRequest) -> HttpResponse:
    with advisory_lock("counter", "hits"):
        return add_one("hits")


@advisory_lock("counter", lambda request, name: name)
def decorated(request: HttpRequest, name: str) -> HttpResponse:
    return add_one(name)


class Hit(View):
    @method_decorator(advisory_lock("counter", lambda request, name: name))
    def get(self, request: HttpRequest, name: str) -> HttpResponse:
        return add_one(name)
