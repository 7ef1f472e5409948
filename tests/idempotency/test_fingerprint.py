"""Fingerprints: equal for the same request, however it is sent; different for any other."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http.request import RawPostDataException
from django.test import RequestFactory
from django.test.client import encode_multipart

from django_dblock.idempotency import fingerprint


def sent(body=b"{}", *, path="/pay/", method="POST", kind="application/json"):
    return RequestFactory().generic(method, path, body, content_type=kind)


def multipart(boundary="a", *, path="/pay/", **fields):
    return sent(
        encode_multipart(boundary, fields),
        path=path,
        kind=f"multipart/form-data; boundary={boundary}",
    )


def file(content=b"picture", name="a.png", kind="image/png"):
    return SimpleUploadedFile(name, content, content_type=kind)


def form(body, **more):
    return sent(body, kind="application/x-www-form-urlencoded", **more)


def of(request):
    return fingerprint.of_request(request)


def test_same_request_has_the_same_fingerprint():
    assert of(sent()) == of(sent())
    assert len(of(sent())) == 32


@pytest.mark.parametrize(
    "other",
    [
        {"body": b"{} "},
        {"path": "/refund/"},
        {"path": "/pay/?x=1"},
        {"method": "PATCH"},
        {"kind": "text/json"},
        {"kind": "application/json; charset=latin-1"},
    ],
    ids=str,
)
def test_each_part_of_a_request_changes_the_fingerprint(other):
    assert of(sent()) != of(sent(**other))


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "unknown"])
def test_default_or_unknown_charset_is_ignored(charset):
    """The view reads the same text."""
    assert of(sent()) == of(sent(kind=f"application/json; charset={charset}"))


def test_adjacent_parts_cannot_collide():
    assert of(sent(b"b", path="/a")) != of(sent(b"", path="/ab"))
    assert of(multipart(a="bc")) != of(multipart(ab="c"))
    assert of(multipart(a=["b", "c"])) != of(multipart(a=["bc"]))
    assert of(multipart(a=["b", "c"])) != of(multipart(a="b", c="c"))


def test_multipart_boundary_is_ignored():
    one, two = multipart("one", a="1", f=file()), multipart("two", f=file(), a="1")
    assert one.body != two.body
    assert of(one) == of(two)


def test_csrf_token_of_a_form_is_ignored():
    assert of(multipart(a="1", csrfmiddlewaretoken="x")) == of(multipart(a="1"))


@pytest.mark.parametrize(
    "body",
    [
        b"csrfmiddlewaretoken=x&a=1&b=2&a=3",
        b"a=1&csrfmiddlewaretoken=another&b=2&a=3",
        b"a=1&b=2&a=3&csrfmiddlewaretoken",
        b"csrfmiddlewaretoken=x&a=1&b=2&a=3&csrfmiddlewaretoken=y",
        b"%63srfmiddlewaretoken=x&a=1&b=2&a=3",
    ],
)
def test_csrf_token_of_an_urlencoded_form_is_ignored(body):
    """It is masked anew with each page: the form that is sent once more is the same request."""
    assert of(form(body)) == of(form(b"a=1&b=2&a=3"))


@pytest.mark.parametrize(
    "body",
    [
        b"a=3&b=2&a=1",
        b"b=2&a=1&a=3",
        b"a=1&b=2",
        b"a=1&b=2&a=3&",
        b"a=1&b=2&a=3&csrfmiddlewaretoken2=x",
        b"a=1&b=2&a=3csrfmiddlewaretoken=x",
        b"a=1&b=2&a=csrfmiddlewaretoken",
    ],
)
def test_urlencoded_form_is_compared_byte_for_byte(body):
    assert of(form(body)) != of(form(b"a=1&b=2&a=3"))


def test_urlencoded_form_with_invalid_utf8_is_compared():
    one, again, other = b"a=\xff&csrfmiddlewaretoken=\xfe", b"a=\xff&%ff=", b"a=\xfe"
    assert of(form(one)) == of(form(b"a=\xff"))
    assert len({of(form(body)) for body in (one, again, other)}) == 3


def test_csrf_token_in_json_counts():
    assert of(sent(b"csrfmiddlewaretoken=x")) != of(sent(b"csrfmiddlewaretoken=y"))


def test_urlencoded_form_read_before_is_the_same_request():
    request = form(b"csrfmiddlewaretoken=x&a=1")
    assert request.POST["a"] == "1"
    assert of(request) == of(form(b"csrfmiddlewaretoken=y&a=1"))
    assert request.POST["csrfmiddlewaretoken"] == "x", "the view finds it as it was"


@pytest.mark.parametrize(
    "other", [file(b"pictures"), file(name="b.png"), file(kind="image/gif")], ids=repr
)
def test_other_file_is_another_request(other):
    assert of(multipart(f=file())) != of(multipart(f=other))


def test_files_are_hashed_as_a_stream_and_rewound(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 1000
    large = b"x" * 300_000
    request, again, other = (
        multipart(a="1", f=file(content)) for content in (large, large, large[:-1] + b"y")
    )
    assert of(request) == of(again)
    assert of(request) != of(other)
    assert request.FILES["f"].read() == large
    for one in (request, again, other):
        one.close()  # the uploads are temporary files


def test_multipart_form_read_before_is_the_same_request():
    request = multipart(a="1")
    assert request.POST["a"] == "1"
    assert of(request) == of(multipart(a="1"))


def test_streamed_body_needs_the_parsed_data():
    request = sent(b'{"a": 1}')
    request.read()
    with pytest.raises(RawPostDataException):
        of(request)
    parsed = fingerprint.of_request(request, {"a": 1, "b": 2})
    assert parsed == fingerprint.of_request(request, {"b": 2, "a": 1})
    assert parsed != fingerprint.of_request(request, {"a": 2, "b": 2})


def test_csrf_token_of_a_parsed_stream_is_ignored():
    """As REST framework's FormParser did before 3.18; a parser may make something else of it."""
    request = form(b"a=1")
    request.read()

    def parsed(made):
        return fingerprint.of_request(request, [made])

    same = [parsed({"a": ["1"], "csrfmiddlewaretoken": [token]}) for token in "xy"]
    assert same == [parsed({"a": ["1"]})] * 2
    assert same[0] != parsed({"a": ["1"], "b": ["2"]})
    assert parsed(["csrfmiddlewaretoken"]) != parsed([])


def test_unserializable_fingerprint_is_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint.of_value(sent(), object())


def test_file_fingerprint_is_hashed_and_rewound():
    one, again, other = (file(content) for content in (b"one", b"one", b"two"))
    found = [fingerprint.of_value(sent(), {"file": each}) for each in (one, again, other)]
    assert found[0] == found[1] != found[2]
    assert one.read() == b"one"
    assert fingerprint.of_value(sent(), {"file": file(name="b.png")}) != fingerprint.of_value(
        sent(), {"file": file()}
    )


def test_fingerprint_option_replaces_the_body():
    assert fingerprint.of_value(sent(b"1"), {"a": 1}) == fingerprint.of_value(sent(b"2"), {"a": 1})
    assert fingerprint.of_value(sent(), "a") == fingerprint.of_value(sent(), b"a")
    assert fingerprint.of_value(sent(), "a") != fingerprint.of_value(sent(path="/x/"), "a")


def test_fingerprint_of_work_depends_on_its_value():
    assert fingerprint.of_work({"a": 1}) != fingerprint.of_work({"a": 2})
    assert fingerprint.of_work("\udc80") == fingerprint.of_work("\udc80")
