"""Fuzzing: any request gets a response, and a replay only for the same request."""

import json
from collections import Counter
from urllib.parse import quote

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import JsonResponse
from django.test import Client, RequestFactory, override_settings
from django.test.client import encode_multipart
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from rest_framework.test import APIClient

from django_dblock import idempotent
from tests.app.idempotent_views import client
from tests.app.models import Document

pytestmark = pytest.mark.slow

LATIN = st.text(st.characters(max_codepoint=0xFF))
"""A header or an address as WSGI hands it over: each byte a character."""

SOMEBODY = LATIN.map("client{}".format)  # never a text that stands for nobody
KINDS = st.sampled_from(
    [
        "",
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded; charset=latin-1",
        "text/plain; charset=nonsense",
        "multipart/mixed; boundary=a",
    ]
)
NAMES = st.sampled_from(["a", "b", "csrf"])
FORMS = st.fixed_dictionaries(
    {
        "fields": st.dictionaries(NAMES, st.lists(st.text(max_size=5), max_size=2), max_size=2),
        "files": st.dictionaries(NAMES, st.binary(max_size=5), max_size=2),
    }
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
).map(json.dumps)


@idempotent(scope=client, required=False)
def view(request):
    return JsonResponse({"document": str(Document.objects.create().pk)}, status=201)


def ask(request):
    return view(request)


def sent(body=b"{}", *, path="/x/", query="", method="POST", kind="application/json", **headers):
    headers = {"HTTP_IDEMPOTENCY_KEY": "k", "CONTENT_TYPE": kind, **headers}
    factory = RequestFactory()
    return factory.generic(method, quote(path), body, kind, QUERY_STRING=query, **headers)


def outcome(response):
    """``new``, ``again``, or why not; and what it says."""
    told = json.loads(response.content)
    replayed = response.headers.get("Idempotent-Replayed") == "true"
    return told.get("code", "again" if replayed else "new"), told


requests = st.fixed_dictionaries(
    {
        "body": st.binary(max_size=3),
        "path": st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map("/x/".__add__),
        "query": LATIN,
        "method": st.sampled_from(["POST", "PATCH"]),
        "kind": KINDS,
    }
)


SAME = {
    "body": b"name=\xc3\xa9",
    "path": "/x/",
    "query": "",
    "method": "POST",
    "kind": "application/x-www-form-urlencoded",
}


class TestHeader(TestCase):
    @given(value=LATIN | st.text())
    @example(value='"\xff"')
    @example(value="k\x00")
    @example(value='"' + "k" * 256 + '"')
    def test_any_value_is_a_key_or_a_400(self, value):
        first, again = (outcome(ask(sent(HTTP_IDEMPOTENCY_KEY=value))) for _ in range(2))
        if first[0] == "new":
            assert again == ("again", first[1])
        else:
            assert first[0] == again[0] == "key_invalid"
        assert Document.objects.count() == (first[0] == "new")

    @given(value=st.binary())
    @override_settings(ROOT_URLCONF="tests.app.idempotent_matrix")
    def test_any_bytes_through_the_handler(self, value):
        headers = {"HTTP_IDEMPOTENCY_KEY": value.decode("latin-1"), "HTTP_X_CLIENT": "ann"}
        statuses = [Client().post("/function/", {}, **headers).status_code for _ in range(2)]
        assert statuses in ([201, 201], [400, 400])

    @given(
        one=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
        two=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    )
    def test_two_keys_are_two_requests(self, one, two):
        def quoted(key):
            escaped = key.replace("\\", "\\\\").replace('"', '\\"')
            return ask(sent(HTTP_IDEMPOTENCY_KEY=f'"{escaped}"'))

        first, second = outcome(quoted(one)), outcome(quoted(two))
        assert (first[0], second[0]) == ("new", "again" if one == two else "new")
        assert (first[1] == second[1]) is (one == two)


class TestScope(TestCase):
    @given(ann=SOMEBODY, bob=SOMEBODY, again=SOMEBODY)
    @example(ann="a", bob="a ", again="A")
    @example(ann="x" * 300, bob="x" * 301, again="x" * 255)
    @example(ann="a\x00", bob="a", again="\x00a")
    def test_no_client_gets_anothers_response(self, ann, bob, again):
        owner = {}
        for who in (ann, bob, again, bob, ann):
            told = outcome(ask(sent(HTTP_X_CLIENT=who)))
            assert told == ("again", owner[who]) if who in owner else told[0] == "new"
            owner[who] = told[1]
        assert len({told["document"] for told in owner.values()}) == len(owner)


def place(method="POST", path="/x/", query="", kind="application/json", **_):
    """What must be the same besides the body; names of media types have no case."""
    charset = "latin-1" if "latin-1" in kind else "utf-8"
    return method, path, query, kind.partition(";")[0].lower(), charset


class TestFingerprint(TestCase):
    def both(self, one, two, *, same):
        first = outcome(ask(one()))
        assert first[0] == "new"
        second = outcome(ask(two()))
        assert second == ("again", first[1]) if same else second[0] == "key_reused"
        assert outcome(ask(one())) == ("again", first[1])
        assert Document.objects.count() == 1

    @given(one=requests, two=requests, changed=st.sets(st.sampled_from([*SAME])))
    @example(one=SAME, two={**SAME, "kind": f"{SAME['kind']}; charset=latin-1"}, changed={"kind"})
    def test_equal_requests_replay_and_others_are_refused(self, one, two, changed):
        for who, other in enumerate((two, {**one, **{name: two[name] for name in changed}}, one)):
            Document.objects.all().delete()
            self.both(
                lambda: sent(**one, HTTP_X_CLIENT=f"client{who}"),  # noqa: B023 - called in this round
                lambda: sent(**other, HTTP_X_CLIENT=f"client{who}"),  # noqa: B023
                same=(one["body"], place(**one)) == (other["body"], place(**other)),
            )

    @given(one=FORMS, two=FORMS, boundaries=st.permutations(["one", "two", "three"]))
    @example(
        one={"fields": {"a": ["b"]}, "files": {}},
        two={"fields": {}, "files": {"a": b"b"}},
        boundaries=["one", "two", "three"],
    )
    def test_multipart_boundary_is_ignored(self, one, two, boundaries):
        def form(data, boundary, method="POST"):
            files = {
                f"{name}-file": SimpleUploadedFile("f", content)
                for name, content in data["files"].items()
            }
            body = encode_multipart(boundary, {**data["fields"], **files})
            return sent(body, kind=f"multipart/form-data; boundary={boundary}", method=method)

        def said(data):
            return {name: values for name, values in data["fields"].items() if values}, data[
                "files"
            ]

        a, b, c = boundaries
        self.both(lambda: form(one, a), lambda: form(two, b), same=said(one) == said(two))
        assert outcome(ask(form(one, c)))[0] == "again"
        assert outcome(ask(form(one, c, "PATCH")))[0] == "key_reused"

    @given(
        body=st.binary() | st.binary().map(lambda inner: b"--a\r\n" + inner + b"\r\n--a--\r\n"),
        method=st.sampled_from(["POST", "PATCH"]),
        kind=st.sampled_from(["", "; boundary=a", "; boundary=", "; boundary=\x00", "; charset=x"]),
    )
    @override_settings(ROOT_URLCONF="tests.app.idempotent_matrix")
    def test_malformed_form_gets_a_response(self, body, method, kind):
        headers = {"HTTP_IDEMPOTENCY_KEY": "k", "HTTP_X_CLIENT": "ann"}
        for path in ("/function/", "/on-dispatch/"):
            response = Client().generic(method, path, body, f"multipart/form-data{kind}", **headers)
            assert response.status_code in {201, 400, 405, 422}

    @given(one=JSON, two=JSON, read=st.booleans())
    @example(one="1", two="true", read=True)
    @example(one="1", two="1.0", read=True)
    @override_settings(ROOT_URLCONF="tests.app.idempotent_matrix")
    def test_parsed_json_is_compared(self, one, two, read):
        from django.contrib.auth.models import User

        User.objects.create(username="ann")
        place = "/does-after-reading/plain/" if read else "/does/plain/"

        def send(body):
            headers = {"Idempotency-Key": "k", "Authorization": "Token ann"}
            return APIClient().post(place, body, content_type="application/json", headers=headers)

        def told(response):
            return response.status_code, response.headers.get("Idempotent-Replayed")

        found = Counter(told(send(body)) for body in (one, two, one))
        same = json.dumps(json.loads(one), sort_keys=True) == json.dumps(
            json.loads(two), sort_keys=True
        )
        if not read:
            same = one == two
        again = {(201, "true"): 2} if same else {(201, "true"): 1, (422, None): 1}
        assert found == {(201, None): 1, **again}
