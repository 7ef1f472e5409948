"""Which responses are stored, and what of them a replay repeats."""

import asyncio

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import IntegrityError
from django.http import HttpResponse, JsonResponse
from django.test import Client, RequestFactory
from django.urls import path
from django.utils import translation

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter

pytestmark = pytest.mark.django_db(transaction=True)

LOCALE = "django.middleware.locale.LocaleMiddleware"


def effects():
    return sum(Counter.objects.values_list("value", flat=True))


def send(view, **headers):
    headers = {"Idempotency-Key": "k", **headers}
    request = RequestFactory().post("/x/", b"{}", "application/json", headers=headers)
    response = view(request)
    return async_to_sync(wait_for)(response) if asyncio.iscoroutine(response) else response


async def wait_for(coroutine):
    return await coroutine


def replayed(response):
    return response.headers.get("Idempotent-Replayed") == "true"


def sync_view(make, **options):
    @idempotent(**{"scope": client, **options})
    def view(request):
        add_one()
        return make()

    return view


def async_view(make, **options):
    @idempotent(**{"scope": client, "mode": "lease", **options})
    async def view(request):
        await sync_to_async(add_one)()
        return make()

    return view


def lease_view(make, **options):
    return sync_view(make, mode="lease", **options)


KINDS = pytest.mark.parametrize(
    "kind", [sync_view, lease_view, async_view], ids=["atomic", "lease", "async"]
)


class TestComeBackLater:
    """A stored "come back later" would say so for a day."""

    @KINDS
    @pytest.mark.parametrize("headers", [{}, {"Retry-After": "30"}], ids=["", "Retry-After"])
    @pytest.mark.parametrize("status", [401, 403, 408, 412, 423, 425, 428, 429, 503])
    def test_status_is_not_stored(self, kind, status, headers):
        view = kind(lambda: JsonResponse({}, status=status, headers=headers))
        for _ in range(2):
            response = send(view)
            assert response.status_code == status
            assert response.headers.get("Retry-After") == headers.get("Retry-After")
            assert not replayed(response)
        assert effects() == (0 if kind is sync_view else 2)
        assert not IdempotencyKey.objects.exclude(completed_at=None).exists()

    @KINDS
    @pytest.mark.parametrize("status", [409, 413, 404])
    def test_error_with_retry_after_is_not_stored(self, kind, status):
        """RFC 9110, 10.2.3: the condition is temporary."""
        view = kind(lambda: HttpResponse(status=status, headers={"Retry-After": "30"}))
        assert not replayed(send(view))
        assert not replayed(send(view))

    @KINDS
    def test_error_without_retry_after_is_stored(self, kind):
        view = kind(lambda: HttpResponse(status=409))
        assert not replayed(send(view))
        assert replayed(send(view))

    @KINDS
    @pytest.mark.parametrize("status", [202, 303])
    def test_success_with_retry_after_is_stored(self, kind, status):
        """An accepted job and a redirect may say when to look."""
        view = kind(lambda: HttpResponse(status=status, headers={"Retry-After": "30"}))
        send(view)
        again = send(view)
        assert (replayed(again), again.headers["Retry-After"]) == (True, "30")

    @KINDS
    @pytest.mark.parametrize("headers", [{}, {"Retry-After": "30"}], ids=["", "Retry-After"])
    def test_server_error_with_retry_after_is_never_stored(self, kind, headers):
        view = kind(lambda: HttpResponse(status=503, headers=headers), store_5xx=True)
        send(view)
        assert replayed(send(view)) is not bool(headers)


REPRESENTATION = {
    "Content-Type": "text/csv",
    "Content-Language": "de",
    "Content-Location": "/reports/1.csv",
    "Content-Disposition": 'attachment; filename="report.csv"',
    "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
    "ETag": '"1"',
    "Content-Digest": "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:",
    "Repr-Digest": "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:",
    "Location": "/reports/1/",
    "Link": '</style.css>; rel="preload"',
}


class TestHeaders:
    @KINDS
    @pytest.mark.parametrize("name", REPRESENTATION)
    def test_representation_header_is_repeated(self, kind, name):
        """RFC 9110, 8; RFC 6266; RFC 8288; RFC 9530."""
        view = kind(lambda: HttpResponse(b"a;b", headers=REPRESENTATION))
        first, again = send(view), send(view)
        assert replayed(again)
        assert again.headers[name] == first.headers[name] == REPRESENTATION[name]

    def test_dropped_body_has_no_representation_headers(self):
        view = sync_view(lambda: HttpResponse(b"a;b", headers=REPRESENTATION), store_body=False)
        send(view)
        again = send(view)
        assert again.status_code == 204
        assert sorted(set(REPRESENTATION) & set(again.headers)) == [
            "Content-Location",
            "Link",
            "Location",
        ]

    @KINDS
    @pytest.mark.parametrize("name", ["X-Accel-Redirect", "x-sendfile", "X-LIGHTTPD-send-file"])
    def test_file_that_the_web_server_sends_is_refused(self, kind, name, settings, caplog):
        """Its replay had no header, so the client got 200 without the file."""
        view = kind(lambda: HttpResponse(headers={name: "/files/1.pdf"}))
        assert send(view).status_code == 500
        assert f"DBLOCK_IDEMPOTENCY_HEADERS does not keep its {name}" in caplog.text
        assert IdempotencyKey.objects.count() == 0
        settings.DBLOCK_IDEMPOTENCY_HEADERS = (name.lower(),)
        assert not replayed(send(view))
        again = send(view)
        assert replayed(again)
        assert again.headers[name] == "/files/1.pdf"

    def test_file_that_the_web_server_sends_may_be_dropped(self):
        headers = {"X-Accel-Redirect": "/files/1.pdf"}
        view = sync_view(lambda: HttpResponse(headers=headers), store_body=False)
        assert send(view).headers["X-Accel-Redirect"] == "/files/1.pdf"
        assert send(view).status_code == 204

    @pytest.mark.urls(__name__)
    def test_language_of_the_middleware_is_repeated(self, settings):
        """A replay to a client with another language is still in the first one."""
        settings.USE_I18N = True
        settings.MIDDLEWARE = [LOCALE]
        settings.LANGUAGES = [("en", "English"), ("de", "German")]
        found = [
            Client().post("/greet/", headers={"Idempotency-Key": "k", "Accept-Language": language})
            for language in ("de", "en")
        ]
        assert [response.content for response in found] == [b"de", b"de"]
        assert [response.headers["Content-Language"] for response in found] == ["de", "de"]
        assert replayed(found[1])

    @pytest.mark.urls(__name__)
    def test_without_the_middleware_no_language_is_claimed(self, settings):
        settings.MIDDLEWARE = []
        for _ in range(2):
            response = Client().post("/greet/", headers={"Idempotency-Key": "k"})
            assert "Content-Language" not in response.headers


@idempotent(scope=client)
def greet(request):
    return HttpResponse(translation.get_language())


urlpatterns = [path("greet/", greet)]


def errors():
    return JsonResponse({"errors": [{"message": "no"}]})


def data():
    return JsonResponse({"data": {}})


def without_errors(response):
    return b"errors" not in response.content


async def without_errors_async(response):
    return b"errors" not in response.content


class TestKeep:
    """GraphQL says 200 for everything: a predicate of the response tells what has worked."""

    @KINDS
    def test_refused_response_frees_the_key(self, kind):
        view = kind(errors, keep=without_errors)
        for _ in range(2):
            response = send(view)
            assert response.content == b'{"errors": [{"message": "no"}]}'
            assert not replayed(response)
        assert effects() == (0 if kind is sync_view else 2)
        assert not IdempotencyKey.objects.exclude(completed_at=None).exists()

    @KINDS
    def test_accepted_response_is_kept(self, kind):
        view = kind(data, keep=without_errors)
        first, again = send(view), send(view)
        assert (replayed(again), again.content) == (True, first.content)
        assert effects() == 1

    @pytest.mark.parametrize("make", [errors, data])
    def test_async_predicate_of_an_async_view_is_awaited(self, make):
        view = async_view(make, keep=without_errors_async)
        send(view)
        assert replayed(send(view)) is (make is data)

    def test_async_predicate_of_a_sync_view_is_refused(self):
        with pytest.raises(TypeError, match="keep= is async"):
            sync_view(data, keep=without_errors_async)

    @pytest.mark.parametrize("option", ["scope", "key", "fingerprint"])
    def test_other_async_options_of_a_sync_view_are_refused(self, option):
        with pytest.raises(TypeError, match=f"{option}= is async"):
            sync_view(data, **{option: without_errors_async})

    @pytest.mark.parametrize("kind", [sync_view, async_view])
    def test_predicate_sees_only_what_would_be_kept(self, kind):
        seen = []
        view = kind(lambda: HttpResponse(status=503), keep=seen.append)
        send(view)
        assert seen == []

    @KINDS
    def test_error_of_the_predicate_rolls_back_and_frees_the_key(self, kind):
        def fails(response):
            raise LookupError

        with pytest.raises(LookupError):
            send(kind(data, keep=fails))
        assert effects() == (0 if kind is sync_view else 1)
        assert not replayed(send(kind(data)))

    def test_swallowed_database_error_below_a_refusal_is_no_failure(self):
        """GraphQL has answered errors over a transaction that is aborted."""

        def make():
            try:
                Counter.objects.create(name="effects")
            except IntegrityError:
                return errors()

        view = sync_view(make, keep=without_errors)
        assert send(view).status_code == 200
        assert effects() == 0

    def test_predicate_is_asked_about_stored_errors(self):
        def make():
            raise RuntimeError

        seen = []
        view = sync_view(make, store_5xx=True, keep=seen.append)
        assert send(view).status_code == 500
        assert [response.status_code for response in seen] == [500]
        assert not IdempotencyKey.objects.exists()
