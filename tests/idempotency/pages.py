"""Views for the rows of the table that need options, and what stands above them."""

from collections.abc import Callable
from datetime import timedelta

from django.contrib.auth.decorators import login_required, permission_required
from django.db import connection, transaction
from django.http import HttpResponse, JsonResponse
from django.template.response import TemplateResponse

from django_dblock import idempotent
from tests.app.idempotent_views import add_one, answers, client

strict = idempotent(scope=client, strict=True)(answers)
optional = idempotent(scope=client, required=False)(answers)
by_put = idempotent(scope=client, methods=("put",))(answers)
keeps_5xx = idempotent(scope=client, store_5xx=True)(answers)
no_body = idempotent(scope=client, store_body=False)(answers)
short = idempotent(scope=client, ttl=timedelta(minutes=1))(answers)
by_form = idempotent(scope=client, strict=True, key=lambda request: request.POST.get("once"))(
    answers
)
by_amount = idempotent(scope=client, fingerprint=lambda request: request.GET["amount"])(answers)
patient = idempotent(scope=client, wait=30)(answers)
impatient = idempotent(scope=client, wait=0.05)(answers)
nowhere = idempotent(scope=client, using="sqlite")(answers)

members_only = login_required(idempotent(answers))
permitted_only = permission_required("app.add_counter", raise_exception=True)(idempotent(answers))

throttled: list[bool] = []


def throttle(view):
    def guarded(request, how):
        return HttpResponse(status=429) if throttled else view(request, how)

    return guarded


throttled_view = throttle(idempotent(scope=client)(answers))


@idempotent(scope=client)
def template(request, how):
    add_one()
    response = TemplateResponse(request, "lazy.html", {"name": how})
    response.add_post_render_callback(lambda _: rendered.append(transaction.get_connection()))
    return response


rendered: list[object] = []


@idempotent(scope=client)
def hooked(request, how):
    """It runs a hook after the commit, if there is one."""
    transaction.on_commit(lambda: hooks.append(how))
    return answers(request, how)


hooks: list[str] = []


@idempotent(scope=client)
def broken_connection(request, how):
    connection.close()
    return HttpResponse(b"fine")


@idempotent(scope=client)
def shows_handle(request, how):
    handle = request.idempotency
    with handle.guard():
        add_one()
    return handle.complete(
        JsonResponse(
            {
                "key": handle.key,
                "scope": handle.scope,
                "mode": handle.mode,
                "token": handle.token,
                "protected": handle.protected,
                "derived": handle.derived_key("charge"),
            }
        )
    )


@idempotent(scope=client)
def steps(request, how):
    with request.idempotency.step("charge"):
        pass


def slow(during: Callable[[], None]):
    """Make a view that calls a function while it runs."""

    @idempotent(scope=client)
    def view(request, how):
        add_one()
        during()
        return JsonResponse({"how": how}, status=201)

    return view
