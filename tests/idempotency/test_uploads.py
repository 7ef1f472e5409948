"""Uploads: what the decorator reads of a body, the view can read once more, in its own way."""

import io
from contextlib import suppress
from hashlib import sha256
from operator import attrgetter

import pytest
from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.core.files.uploadhandler import (
    FileUploadHandler,
    StopUpload,
    TemporaryFileUploadHandler,
)
from django.core.handlers.wsgi import LimitedStream
from django.http import HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParser
from django.http.request import RawPostDataException, UnreadablePostError
from django.test import RequestFactory
from django.test.client import encode_multipart

from django_dblock import IdempotencyKey, idempotent
from tests.app.idempotent_views import client

pytestmark = pytest.mark.django_db(transaction=True)

SIZES = pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "3 MB"])


def once(view):
    return idempotent(scope=client, methods=("POST", "PUT", "PATCH"))(view)


def multipart(content, *, method="POST", boundary="x", **fields):
    file = SimpleUploadedFile("a.bin", content, content_type="image/png")
    body = encode_multipart(boundary, {**fields, "file": file})
    return sent(body, method, f"multipart/form-data; boundary={boundary}")


def sent(body, method="POST", kind="application/octet-stream"):
    return RequestFactory().generic(
        method, "/x/", body, content_type=kind, headers={"Idempotency-Key": "k"}
    )


def replayed(response):
    return response.headers.get("Idempotent-Replayed") == "true"


def digest(file):
    return sha256(file.read()).hexdigest()


@once
def parses(request):
    """A plain view that parses a PATCH or PUT, as Django's documentation shows."""
    parser = MultiPartParser(request.META, request, request.upload_handlers)
    fields, files = parser.parse()
    answer = {"a": fields.get("a"), "sha256": digest(files["file"])}
    files["file"].close()
    return JsonResponse(answer)


@once
def takes_files(request):
    with request.FILES["file"] as file:
        return JsonResponse({"a": request.POST.get("a"), "sha256": digest(file)})


@once
def sets_handlers(request):
    request.upload_handlers.insert(0, TemporaryFileUploadHandler(request))
    request.upload_handlers = [TemporaryFileUploadHandler(request)]
    with request.FILES["file"] as file:
        assert isinstance(file, TemporaryUploadedFile)
        return JsonResponse({"sha256": digest(file)})


@once
def streams(request):
    """A view that never has the whole body in memory."""
    found = sha256()
    while chunk := request.read(65_536):
        found.update(chunk)
    return HttpResponse(found.hexdigest())


@SIZES
@pytest.mark.parametrize(
    ("view", "method"),
    [
        (parses, "PATCH"),
        (parses, "PUT"),
        (takes_files, "POST"),
        (sets_handlers, "POST"),
    ],
)
def test_multipart_is_fingerprinted_by_content(view, method, size):
    one, two = b"x" * size, b"x" * (size - 1) + b"y"
    first = view(multipart(one, method=method, a="1"))
    assert first.status_code == 200, first.content
    assert sha256(one).hexdigest().encode() in first.content
    again = view(multipart(one, method=method, boundary="other", a="1"))
    assert (again.content, replayed(again)) == (first.content, True)
    assert view(multipart(two, method=method, a="1")).status_code == 422
    assert view(multipart(one, method=method, a="2")).status_code == 422


@SIZES
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_streamed_body_reaches_the_view(method, size):
    one, two = b"x" * size, b"x" * (size - 1) + b"y"
    first = streams(sent(one, method))
    assert first.content == sha256(one).hexdigest().encode()
    assert replayed(streams(sent(one, method)))
    assert streams(sent(two, method)).status_code == 422


def test_streamed_multipart_reaches_the_view():
    request = multipart(b"x" * 3_000_000)
    body = request.environ["wsgi.input"].read()
    request.environ["wsgi.input"] = None
    first = streams(sent(body, kind="multipart/form-data; boundary=x"))
    assert first.content == sha256(body).hexdigest().encode()


def test_body_over_the_limit_is_refused_as_by_django():
    """As without the decorator: Django reads no more than that into memory."""

    @once
    def view(request):
        return HttpResponse(request.body)

    with pytest.raises(RequestDataTooBig):
        view(sent(b"x" * 3_000_000))
    with pytest.raises(RequestDataTooBig):
        view(sent(b"a=" + b"x" * 3_000_000, kind="application/x-www-form-urlencoded"))


@pytest.mark.parametrize("read", ["POST", "body"])
def test_form_already_parsed_is_fingerprinted(read):
    """As by the CSRF check, or a middleware that logs."""
    found = []
    for boundary in ("one", "two"):
        request = multipart(b"x", boundary=boundary, a="1")
        getattr(request, read)
        found.append(takes_files(request))
    assert [replayed(response) for response in found] == [False, True]


def test_parsed_and_unparsed_form_are_equal():
    request = multipart(b"x", a="1")
    assert request.POST["a"] == "1"
    takes_files(request)
    assert replayed(takes_files(multipart(b"x", a="1")))


def test_seekable_stream_is_not_copied():
    """As ASGI's: Django has put it in a file already."""
    request = sent(b"x" * 3_000_000)
    stream = request._stream = io.BytesIO(b"x" * 3_000_000)
    assert streams(request).status_code == 200
    assert request._stream is stream


def test_empty_multipart_form_is_replayed():
    for again in (False, True):
        request = sent(encode_multipart("x", {}), kind="multipart/form-data; boundary=x")
        response = once_reads_nothing(request)
        assert replayed(response) is again


@once
def once_reads_nothing(request):
    assert not request.POST
    return HttpResponse()


def test_without_a_limit_a_large_body_is_read_as_bytes(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = None

    @once
    def view(request):
        return HttpResponse(sha256(request.body).hexdigest())

    body = b"x" * 3_000_000
    assert view(sent(body)).content == sha256(body).hexdigest().encode()
    assert replayed(view(sent(body)))


class Broken(io.RawIOBase):
    """The stream of a client that has gone."""

    def read(self, size=-1):
        raise ConnectionResetError


def test_disconnect_during_the_upload_propagates():
    request = multipart(b"x")
    request._stream = Broken()
    with pytest.raises(UnreadablePostError):
        takes_files(request)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_multipart_read_as_a_stream_is_no_empty_form(method):
    """Else any other body would get the response to this one."""
    request = multipart(b"x", method=method)
    request.read(1)
    with pytest.raises(RawPostDataException):
        once_reads_nothing(request)
    assert not IdempotencyKey.objects.exists()


def test_upload_whose_client_has_gone_leaves_the_key_free():
    """The CSRF check catches the error, and goes on if the token is in a header."""
    request = multipart(b"x")
    request._stream = Broken()
    with suppress(UnreadablePostError):
        request.POST.get("csrfmiddlewaretoken")
    with pytest.raises(RawPostDataException):
        once_reads_nothing(request)
    assert takes_files(multipart(b"x")).status_code == 200


FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"


def cut_off(kind, size):
    """A request whose client has gone: gunicorn ends the stream, as if the body ended there."""
    body = encode_multipart("x", {"a": "x" * size})
    request = sent(body, kind=kind)
    request._stream = LimitedStream(io.BytesIO(body[:-30]), len(body))
    return request


def post(request):
    assert "csrfmiddlewaretoken" not in request.POST  # as the CSRF check reads it


@pytest.mark.parametrize(
    ("kind", "size", "before"),
    [
        ("application/json", 50, None),
        ("application/json", 50, attrgetter("body")),
        ("application/json", 3_000_000, None),
        (FORM, 50, post),
        (MULTIPART, 50, None),
        (MULTIPART, 50, attrgetter("body")),
        (MULTIPART, 50, post),
        (MULTIPART, 2_000_000, None),
        (MULTIPART, 2_000_000, post),
    ],
)
def test_body_that_was_cut_off_leaves_the_key_free(kind, size, before):
    """Else the retry with the whole body would be refused as another request."""
    request = cut_off(kind, size)
    if before is not None:
        before(request)
    with pytest.raises(UnreadablePostError, match="cut off after"):
        streams(request)
    assert not IdempotencyKey.objects.exists()


@idempotent(scope=client, fingerprint=lambda request: "same")
def reads_nothing(request):
    return HttpResponse()


def test_form_that_was_cut_off_is_refused_also_with_an_own_fingerprint():
    request = cut_off(MULTIPART, 50)
    post(request)
    with pytest.raises(UnreadablePostError, match="cut off after"):
        reads_nothing(request)


def test_body_that_a_middleware_has_decoded_may_be_shorter():
    request = sent(b"x" * 50, kind="application/json")
    assert request.body
    request._body = b"decoded"
    assert streams(request).status_code == 200


def test_malformed_length_is_none():
    """A server that joins two headers: Django takes it for 0."""
    request = sent(b"x" * 50, kind="application/json")
    assert request.body
    request.META["CONTENT_LENGTH"] = "50,50"
    assert streams(request).status_code == 200


def test_encoded_body_may_be_shorter_than_announced():
    request = sent(b"x" * 50, kind="application/json")
    request.META["CONTENT_LENGTH"] = "60"  # a middleware has decoded the stream
    request.META["HTTP_CONTENT_ENCODING"] = "gzip"
    assert streams(request).status_code == 200


def test_unread_body_is_left_alone():
    """The CSRF check asks for the form also where there is none, and the view reads a stream."""
    request = sent(b"x" * 50, kind="application/json")
    post(request)
    assert reads_nothing(request).status_code == 200
    assert request.read() == b"x" * 50


def test_form_whose_parser_was_stopped_is_not_cut_off():
    class Stopping(FileUploadHandler):
        def receive_data_chunk(self, raw_data, start):
            raise StopUpload(connection_reset=True)

        def file_complete(self, file_size):
            return None

    request = multipart(b"x" * 300_000)
    request.upload_handlers = [Stopping(request)]
    post(request)
    assert request._stream._pos < request._stream.limit
    assert reads_nothing(request).status_code == 200
