"""Django REST framework: responses are rendered, stored and replayed as its own."""

import json
from hashlib import sha256

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import override_settings
from rest_framework.test import APIClient

from django_dblock import IdempotencyKey
from tests.app.models import Counter

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.app.idempotent_matrix"),
]

HANDLER = "django_dblock.contrib.rest_framework.exception_handler"
MIDDLEWARE = "django_dblock.middleware.ConflictMiddleware"


@pytest.fixture(autouse=True)
def _users(db):
    for name in ("ann", "bob"):
        User.objects.create(username=name, is_staff=True)


@pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"])
def atomic_requests(request, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", request.param)


def call(place, data=None, *, user="ann", key="one", method="post", how="json", **headers):
    client = APIClient(raise_request_exception=False)
    if user is not None:
        headers["Authorization"] = f"Token {user}"
    headers["Idempotency-Key"] = key
    send = getattr(client, method)
    if how == "raw":
        return send(f"/{place}/", data, content_type="application/json", headers=headers)
    return send(f"/{place}/", {} if data is None else data, format=how, headers=headers)


def effects():
    return sum(Counter.objects.filter(name="effects").values_list("value", flat=True))


def replayed(response):
    return response.headers.get("Idempotent-Replayed") == "true"


@pytest.mark.usefixtures("atomic_requests")
class TestWhatIsKept:
    def test_response_is_rendered_inside_the_transaction(self):
        """A renderer that fails takes the effects with it; it would not, after the view."""
        for _ in range(2):
            assert call("does/fails-on-rendering").status_code == 500
        assert effects() == 0
        assert not IdempotencyKey.objects.exists()

    @pytest.mark.parametrize(
        ("how", "status", "told"),
        [
            ("validation", 400, {"amount": ["too small"]}),
            ("not-found", 404, {"detail": "Not found."}),
        ],
    )
    def test_raised_client_error_is_stored_without_effects(self, how, status, told):
        first, again = call(f"does/{how}"), call(f"does/{how}")
        assert (first.status_code, first.json()) == (status, told)
        assert (again.status_code, again.content) == (status, first.content)
        assert not replayed(first)
        assert replayed(again)
        assert effects() == 0

    def test_returned_client_error_is_stored_with_effects(self):
        first, again = call("does/returned-422"), call("does/returned-422")
        assert (first.status_code, again.status_code) == (422, 422)
        assert replayed(again)
        assert effects() == 1

    @pytest.mark.parametrize(
        ("how", "status"),
        [
            ("not-authenticated", 401),
            ("denied", 403),
            ("throttled", 429),
            ("http404", 404),
            ("server", 500),
            ("crash", 500),
        ],
    )
    def test_temporary_errors_are_not_stored(self, how, status):
        for _ in range(2):
            response = call(f"does/{how}")
            assert response.status_code == status
            assert not replayed(response)
        assert effects() == 0
        assert not IdempotencyKey.objects.exists()

    @pytest.mark.parametrize("how", ["server", "crash"])
    def test_store_5xx_keeps_server_errors(self, how):
        first, again = call(f"keeps-5xx/{how}"), call(f"keeps-5xx/{how}")
        assert (first.status_code, again.status_code) == (500, 500)
        assert replayed(again)
        assert effects() == 0

    def test_store_5xx_keeps_no_other_error(self):
        assert call("keeps-5xx/http404").status_code == 404
        assert not IdempotencyKey.objects.exists()

    @pytest.mark.parametrize("how", ["stream", "too-much", "unstorable"])
    def test_unstorable_response_rolls_back(self, how, caplog):
        """Returned or raised: nothing was done, and the log says why."""
        response = call(f"does/{how}")
        assert (response.status_code, response.json()["code"]) == (500, "unstorable")
        assert "Everything was rolled back" in caplog.text
        assert effects() == 0

    def test_plain_django_response_is_stored(self):
        first, again = call("does/plain"), call("does/plain")
        assert first.content == again.content == b"plain"
        assert replayed(again)


class TestWhoMayComeIn:
    @pytest.mark.parametrize("place", ["staff", "api-direct"])
    def test_equal_keys_of_two_users_are_independent(self, place):
        for user in ("ann", "bob", "ann", "bob"):
            assert call(place, user=user).status_code == 201
        assert effects() == 2
        scopes = {f"user:{user.pk}" for user in User.objects.all()}
        assert set(IdempotencyKey.objects.values_list("scope", flat=True)) == scopes

    def test_authentication_comes_first(self):
        assert call("staff", user=None).status_code == 401
        assert call("staff", user="nobody").status_code == 401
        assert not IdempotencyKey.objects.exists()

    def test_authorisation_runs_again_on_a_replay(self):
        assert call("staff").status_code == 201
        User.objects.update(is_staff=False)
        refused = call("staff")
        assert refused.status_code == 403
        assert not replayed(refused)
        assert effects() == 1

    def test_throttling_comes_first(self):
        response = call("throttled")
        assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
        assert not IdempotencyKey.objects.exists()

    def test_anonymous_client_needs_a_scope(self):
        assert call("api-direct", user=None).status_code == 500
        assert effects() == 0


class TestBodies:
    """A permission class may have read the body, as a stream: there is no raw body then."""

    @pytest.fixture(params=["does/data", "does-after-reading/data"])
    def place(self, request):
        return request.param

    @pytest.mark.parametrize("method", ["post", "patch"])
    @pytest.mark.parametrize(
        ("how", "content_type"),
        [
            ("json", None),
            ("multipart", None),
            ("form", "application/x-www-form-urlencoded"),
        ],
    )
    def test_equal_body_replays_and_other_is_422(self, place, method, how, content_type):
        def send(data):
            if content_type:
                client = APIClient()
                sent = {"Idempotency-Key": "one", "Authorization": "Token ann"}
                path = f"/{place}/"
                return getattr(client, method)(path, data, content_type=content_type, headers=sent)
            return call(place, data, method=method, how=how)

        one, two = ("a=1&a=9&b=2", "a=3&a=9&b=2") if content_type else ({"a": "1"}, {"a": "3"})
        first = send(one)
        assert first.status_code == 200
        assert first.json() == (["a", "b"] if content_type else ["a"])
        assert replayed(send(one))
        assert send(two).status_code == 422
        assert effects() == 1

    @pytest.mark.parametrize("method", ["post", "patch"])
    def test_uploaded_files_count(self, place, method):
        def send(content):
            file = SimpleUploadedFile("a.txt", content)
            return call(place, {"file": file}, how="multipart", method=method)

        assert send(b"one").json() == ["file"]
        assert replayed(send(b"one"))
        assert send(b"two").status_code == 422
        assert effects() == 1

    @pytest.mark.parametrize(("one", "two"), [("[1]", "[2]"), ('"a"', '"b"'), ('["a"]', '"a"')])
    def test_json_scalar_body_counts(self, place, one, two):
        assert call(place, one, how="raw").status_code == 200
        assert replayed(call(place, one, how="raw"))
        assert call(place, two, how="raw").status_code == 422

    @pytest.mark.parametrize("body", ["null", "5", "true"])
    def test_parsed_scalar_body_counts(self, body):
        """Read already, it is not there as bytes, and not to be taken for nothing."""
        for again in (False, True):
            assert replayed(call("does-after-reading/plain", body, how="raw")) is again
        assert call("does-after-reading/plain", "7", how="raw").status_code == 422
        assert effects() == 1

    def test_malformed_json_is_the_frameworks_400(self, place):
        assert call(place, "{", how="raw").status_code == 400
        assert effects() == 0


class TestRawUploads:
    """FileUploadParser takes the body as it comes, as a stream: it may be larger than memory."""

    SIZES = pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "3 MB"])

    @pytest.fixture(params=["uploads", "uploads-after-reading"])
    def place(self, request):
        return request.param

    def send(self, place, content, *, name="a.png", method="post"):
        return getattr(APIClient(), method)(
            f"/{place}/",
            content,
            content_type="image/png",
            headers={
                "Idempotency-Key": "one",
                "Authorization": "Token ann",
                "Content-Disposition": f"attachment; filename={name}",
            },
        )

    @SIZES
    @pytest.mark.parametrize("method", ["post", "put"])
    def test_raw_upload_is_replayed(self, place, size, method):
        one, two = b"\xff" * size, b"\xff" * (size - 1) + b"\xfe"
        first = self.send(place, one, method=method)
        assert first.status_code == 201, first.content
        assert first.json() == {"name": "a.png", "sha256": sha256(one).hexdigest()}
        again = self.send(place, one, method=method)
        assert (again.content, replayed(again)) == (first.content, True)
        assert self.send(place, two, method=method).status_code == 422
        assert effects() == 1

    @SIZES
    def test_raw_upload_without_a_name_is_the_frameworks_400(self, place, size):
        client = APIClient()
        headers = {"Idempotency-Key": "one", "Authorization": "Token ann"}
        body = b"x" * size
        response = client.post(f"/{place}/", body, content_type="image/png", headers=headers)
        assert response.status_code == 400
        assert b"filename" in response.content
        assert effects() == 0


class TestFormsInABrowser:
    def test_remasked_csrf_token_is_the_same_request(self):
        for place in ("does/data", "does-after-reading/data"):
            for token in ("x", "y"):
                response = APIClient().post(
                    f"/{place}/",
                    f"csrfmiddlewaretoken={token}&a=1",
                    content_type="application/x-www-form-urlencoded",
                    headers={"Idempotency-Key": place, "Authorization": "Token ann"},
                )
                assert response.status_code == 200
                assert replayed(response) is (token == "y")
        assert effects() == 2


class TestAnswers:
    def test_first_response_is_negotiated_and_replayed(self):
        first = call("does/data", Accept="text/plain")
        again = call("does/data", Accept="application/json")
        assert first.headers["Content-Type"].startswith("text/plain")
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        assert first.content == again.content == b"[]"

    def test_viewset_create_is_replayed(self):
        data = {"name": "made", "value": 3}
        first, again = call("counters", data), call("counters", data)
        assert first.json() == again.json() == data
        assert replayed(again)
        assert Counter.objects.filter(name="made").count() == 1
        assert call("counters", {"name": "made", "value": 4}).status_code == 422

    def test_serializer_error_is_stored_without_effects(self):
        data = {"name": "x" * 41}
        first, again = call("counters", data), call("counters", data)
        assert (first.status_code, first.content) == (400, again.content)
        assert replayed(again)
        assert effects() == 0

    @pytest.mark.parametrize("place", ["api-direct", "api-on-method"])
    def test_documented_usages_do_not_crash_after_the_effect(self, place):
        assert call(place).json() == {"value": 1}
        assert replayed(call(place))

    def test_complete_in_the_view_renders_the_response(self):
        first, again = call("completes"), call("completes")
        assert first.json() == again.json() == {"value": 1}
        assert replayed(again)

    def test_refusals_are_problems(self):
        response = call("does/data", key="")
        assert response.headers["Content-Type"] == "application/problem+json"
        assert json.loads(response.content)["code"] == "key_invalid"


class TestRunOnceInAView:
    """What run_once() ends with is answered as the decorator would have, where it may be told."""

    def test_exception_handler_reports_in_progress(self):
        with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": HANDLER}):
            response = call("unprotected/once-in-progress")
        assert (response.status_code, response.json()["code"]) == (409, "in_progress")
        assert response.headers["Retry-After"] == "4"
        assert response.headers["Content-Type"].startswith("application/problem+json")

    def test_middleware_reports_in_progress(self, settings):
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, MIDDLEWARE]
        client = Client(raise_request_exception=False)
        response = client.post("/unprotected-plain/once-in-progress/")
        assert (response.status_code, response.json()["code"]) == (409, "in_progress")
        assert response.headers["Retry-After"] == "4"
        assert client.post("/unprotected-plain/once-reused/").status_code == 500, (
            "a mistake of ours"
        )
