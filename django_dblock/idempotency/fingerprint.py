"""The fingerprint of a request: a hash by which the reuse of a key for another request is noticed.

Version 2 is SHA-256 over these parts, each as its length (8 bytes, big-endian) and its bytes: the
method; the host in lower case, with its port unless that is the scheme's default; the path; the
query; the media type; the character set, UTF-8 unless the request names another one that Django
knows; then

- for a multipart body: the name and values of each field, in the order of the names; then the
  field, name, media type, size and SHA-256 of each file. The raw body is not used, because its
  boundary differs between retries, and a file may be larger than what Django reads into memory;
- for any other body: its bytes. If a framework has read the body as a stream: the data that the
  framework parsed, as JSON;
- the value that ``fingerprint=`` returned, instead of either.

The field ``csrfmiddlewaretoken`` of a form, in either encoding, is left out: each page masks it
differently. Version 1 had no host. Fingerprints of different versions are not compared.

Sources: draft-ietf-httpapi-idempotency-key-header-07, 2.4 "Idempotency Fingerprint"; RFC 9110, 7.1
"Determining the Target Resource"; WHATWG URL, 5 "application/x-www-form-urlencoded"; Django's
documentation, "How to use Django's CSRF protection".
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_to_bytes

from django.conf import settings
from django.core.files import File
from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest
from django.http.request import RawPostDataException

from django_dblock.idempotency import request_body

VERSION = 2
"""The version of a request's fingerprint."""

WORK_VERSION = 1
"""The version of a fingerprint of :func:`django_dblock.run_once`."""

_CSRF = "csrfmiddlewaretoken"
_URLENCODED = "application/x-www-form-urlencoded"


def of_request(request: HttpRequest, parsed: Any = None) -> bytes:
    """Return the fingerprint of a request and its body.

    Args:
        request: Django's.
        parsed: the body as a framework has parsed it, if its bytes can't be read.

    Raises:
        RequestDataTooBig: an urlencoded form is larger than ``DATA_UPLOAD_MAX_MEMORY_SIZE``.
        RawPostDataException: other code has read the body as a stream, and ``parsed`` is None.
        UnreadablePostError: the client has gone while its body was read here.
    """
    if request.content_type == "multipart/form-data":
        return _hash([*_place(request), *_form(request)])
    if _is_streamed(request):
        return _hash(_place(request), *request_body.chunks(request))
    try:
        body = request.body
    except RawPostDataException:
        if parsed is None:
            raise
        request_body.refuse_cut_off(request)
        return _hash([*_place(request), _text(_without_token(request, parsed))])
    if str(len(body)) != request.META.get("CONTENT_LENGTH"):
        request_body.refuse_cut_off(request)
    if request.content_type == _URLENCODED:
        body = b"&".join(pair for pair in body.split(b"&") if not _is_token(pair))
    return _hash([*_place(request), body])


def of_value(request: HttpRequest, value: Any) -> bytes:
    """Return the fingerprint of a request with the value that ``fingerprint=`` returned.

    Raises:
        UnreadablePostError: other code has read the body, and it was cut off.
    """
    request_body.refuse_cut_off(request)
    return _hash([*_place(request), _text(value)])


def of_work(value: Any) -> bytes:
    """Return the fingerprint of work that is not a request."""
    return _hash([_text(value)])


def _place(request: HttpRequest) -> list[bytes]:
    texts = (
        str(request.method),
        _host(request),
        request.path,
        request.META.get("QUERY_STRING", ""),
        str(request.content_type).lower(),
        (request.encoding or settings.DEFAULT_CHARSET).lower(),
    )
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def _host(request: HttpRequest) -> str:
    """Return the host and port that the client asked, without a port that is the default.

    ``get_host()`` would refuse a host that ALLOWED_HOSTS lacks. Nothing trusts the host here.
    """
    plain: Any = request
    host: str = plain._get_raw_host().lower()  # noqa: SLF001 - get_host() without its refusal
    if host.endswith((":443", ":80")):
        host = host.removesuffix(":443" if request.is_secure() else ":80")
    return host


def _form(request: HttpRequest) -> Iterable[bytes]:
    fields, files = request_body.form(request)
    for name in sorted(fields):
        if name == _CSRF:
            continue
        values = fields.getlist(name)
        yield from (b"field", _utf8(name), str(len(values)).encode(), *map(_utf8, values))
    for name in sorted(files):
        for file in files.getlist(name):
            described = (name, file.name or "", file.content_type or "", str(file.size))
            yield from (b"file", *map(_utf8, described), request_body.digest(file))


def _is_streamed(request: HttpRequest) -> bool:
    """Return whether the body must be hashed in chunks, because ``request.body`` would refuse it.

    A form is read by ``request.POST``, which has the same limit; its refusal is passed on.
    """
    return request.content_type != _URLENCODED and request_body.is_unread_and_too_large(request)


def _is_token(pair: bytes) -> bool:
    """Return whether a field of an urlencoded form is the CSRF token."""
    return unquote_to_bytes(pair.partition(b"=")[0]) == _CSRF.encode()


def _without_token(request: HttpRequest, parsed: Any) -> Any:
    """Return a form that a framework has parsed without the CSRF token, in a list."""
    if request.content_type != _URLENCODED or not isinstance(parsed[0], dict):
        return parsed
    return [{name: values for name, values in parsed[0].items() if name != _CSRF}]


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _utf8(value)
    return json.dumps(value, sort_keys=True, cls=_Encoder).encode()


class _Encoder(DjangoJSONEncoder):
    """A JSON encoder that encodes a file as its name and its content."""

    def default(self, o: Any) -> Any:
        if isinstance(o, File):
            return [o.name, getattr(o, "content_type", None), o.size, request_body.digest(o).hex()]
        return super().default(o)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _hash(parts: Iterable[bytes], length: int | None = None, chunks: Iterable[bytes] = ()) -> bytes:
    """Return the digest of the parts, and of a last part that comes in chunks of that length."""
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    if length is not None:
        digest.update(length.to_bytes(8, "big"))
        for chunk in chunks:
            digest.update(chunk)
    return digest.digest()
