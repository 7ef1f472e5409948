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


def test_the_same_request_has_the_same_fingerprint():
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
def test_another_method_path_query_media_type_charset_or_body_is_another_request(other):
    assert of(sent()) != of(sent(**other))


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "unknown"])
def test_a_charset_that_is_the_default_or_means_nothing_to_django_is_no_difference(charset):
    """The view reads the same text."""
    assert of(sent()) == of(sent(kind=f"application/json; charset={charset}"))


def test_the_parts_can_not_run_into_each_other():
    assert of(sent(b"b", path="/a")) != of(sent(b"", path="/ab"))
    assert of(multipart(a="bc")) != of(multipart(ab="c"))
    assert of(multipart(a=["b", "c"])) != of(multipart(a=["bc"]))
    assert of(multipart(a=["b", "c"])) != of(multipart(a="b", c="c"))


def test_multipart_bodies_that_differ_in_their_boundary_are_equal():
    one, two = multipart("one", a="1", f=file()), multipart("two", f=file(), a="1")
    assert one.body != two.body
    assert of(one) == of(two)


def test_the_csrf_token_is_no_part_of_a_form():
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
def test_the_csrf_token_is_no_part_of_an_urlencoded_form_wherever_it_stands(body):
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
def test_all_else_of_an_urlencoded_form_counts_as_it_came(body):
    assert of(form(body)) != of(form(b"a=1&b=2&a=3"))


def test_an_urlencoded_form_need_not_be_text():
    one, again, other = b"a=\xff&csrfmiddlewaretoken=\xfe", b"a=\xff&%ff=", b"a=\xfe"
    assert of(form(one)) == of(form(b"a=\xff"))
    assert len({of(form(body)) for body in (one, again, other)}) == 3


def test_the_csrf_token_of_what_is_no_form_counts():
    assert of(sent(b"csrfmiddlewaretoken=x")) != of(sent(b"csrfmiddlewaretoken=y"))


def test_an_urlencoded_form_that_the_csrf_check_has_read_before():
    request = form(b"csrfmiddlewaretoken=x&a=1")
    assert request.POST["a"] == "1"
    assert of(request) == of(form(b"csrfmiddlewaretoken=y&a=1"))
    assert request.POST["csrfmiddlewaretoken"] == "x", "the view finds it as it was"


@pytest.mark.parametrize(
    "other", [file(b"pictures"), file(name="b.png"), file(kind="image/gif")], ids=repr
)
def test_another_file_is_another_request(other):
    assert of(multipart(f=file())) != of(multipart(f=other))


def test_files_are_read_as_a_stream_however_large_and_the_view_finds_them_unread(settings):
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


def test_a_form_that_the_csrf_check_has_read_before():
    request = multipart(a="1")
    assert request.POST["a"] == "1"
    assert of(request) == of(multipart(a="1"))


def test_a_body_that_was_read_as_a_stream_needs_what_was_made_of_it():
    request = sent(b'{"a": 1}')
    request.read()
    with pytest.raises(RawPostDataException):
        of(request)
    parsed = fingerprint.of_request(request, {"a": 1, "b": 2})
    assert parsed == fingerprint.of_request(request, {"b": 2, "a": 1})
    assert parsed != fingerprint.of_request(request, {"a": 2, "b": 2})


def test_the_csrf_token_of_a_form_that_a_framework_has_read_as_a_stream_does_not_count():
    """As REST framework's FormParser did before 3.18; a parser may make something else of it."""
    request = form(b"a=1")
    request.read()

    def parsed(made):
        return fingerprint.of_request(request, [made])

    same = [parsed({"a": ["1"], "csrfmiddlewaretoken": [token]}) for token in "xy"]
    assert same == [parsed({"a": ["1"]})] * 2
    assert same[0] != parsed({"a": ["1"], "b": ["2"]})
    assert parsed(["csrfmiddlewaretoken"]) != parsed([])


def test_what_is_no_json_can_stand_for_no_body():
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint.of_value(sent(), object())


def test_a_file_in_place_of_the_body_counts_by_its_content_and_stays_unread():
    one, again, other = (file(content) for content in (b"one", b"one", b"two"))
    found = [fingerprint.of_value(sent(), {"file": each}) for each in (one, again, other)]
    assert found[0] == found[1] != found[2]
    assert one.read() == b"one"
    assert fingerprint.of_value(sent(), {"file": file(name="b.png")}) != fingerprint.of_value(
        sent(), {"file": file()}
    )


def test_a_value_in_place_of_the_body():
    assert fingerprint.of_value(sent(b"1"), {"a": 1}) == fingerprint.of_value(sent(b"2"), {"a": 1})
    assert fingerprint.of_value(sent(), "a") == fingerprint.of_value(sent(), b"a")
    assert fingerprint.of_value(sent(), "a") != fingerprint.of_value(sent(path="/x/"), "a")


def test_work_that_is_no_request():
    assert fingerprint.of_work({"a": 1}) != fingerprint.of_work({"a": 2})
    assert fingerprint.of_work("\udc80") == fingerprint.of_work("\udc80")
