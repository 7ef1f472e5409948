"""What a request asks for, as a hash: so that a key that is used for something else is noticed.

Version 1 is SHA-256 over these parts, each as its length (8 bytes, big-endian) and its bytes: the
method; the path; the query; the media type; the character set, UTF-8 where none is named that
Django knows; and then

- of a multipart body: each field's name and values, in the order of the names, then each file's
  field, name, media type, size and the SHA-256 of its content. Not the raw body: its boundary
  differs between retries, and a file may be larger than what Django reads into memory;
- of any other: the bytes as they came;
- what ``fingerprint=`` returned, instead of either.

Sources: draft-ietf-httpapi-idempotency-key-header-07, 2.4 "Idempotency Fingerprint".
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.files.uploadhandler import load_handler
from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest
from django.http.multipartparser import MultiPartParser
from django.http.request import RawPostDataException

VERSION = 1


def of_request(request: HttpRequest, parsed: Any = None) -> bytes:
    """Return the fingerprint of a request and its body.

    Args:
        request: Django's.
        parsed: what a framework has made of the body, for a body that it has read as a stream.

    Raises:
        RequestDataTooBig: the body is larger than ``DATA_UPLOAD_MAX_MEMORY_SIZE``.
    """
    if request.content_type == "multipart/form-data":
        return _hash([*_place(request), *_form(request)])
    try:
        body = request.body
    except RawPostDataException:
        if parsed is None:
            raise
        body = _text(parsed)
    return _hash([*_place(request), body])


def of_value(request: HttpRequest, value: Any) -> bytes:
    """Return the fingerprint of a request, and of what ``fingerprint=`` says of its body."""
    return _hash([*_place(request), _text(value)])


def of_work(value: Any) -> bytes:
    """Return the fingerprint of work that is no request."""
    return _hash([_text(value)])


def _place(request: HttpRequest) -> list[bytes]:
    return [
        str(request.method).encode(),
        _utf8(request.path),
        _utf8(request.META.get("QUERY_STRING", "")),
        _utf8(str(request.content_type).lower()),
        _utf8((request.encoding or settings.DEFAULT_CHARSET).lower()),
    ]


def _form(request: HttpRequest) -> Iterable[bytes]:
    fields, files = _parsed(request)
    for name in sorted(fields):
        if name == "csrfmiddlewaretoken":  # masked anew in each form that is rendered
            continue
        values = fields.getlist(name)
        yield from (b"field", _utf8(name), str(len(values)).encode(), *map(_utf8, values))
    for name in sorted(files):
        for file in files.getlist(name):
            digest = sha256()
            for chunk in file.chunks():
                digest.update(chunk)
            file.seek(0)
            described = (name, file.name or "", file.content_type or "", str(file.size))
            yield from (b"file", *map(_utf8, described), digest.digest())


def _parsed(request: HttpRequest) -> tuple[Any, Any]:
    """Return the fields and files; Django parses those of POST only."""
    read: Any = request
    if request.method == "POST" or (read._read_started and not hasattr(read, "_body")):  # noqa: SLF001
        return request.POST, request.FILES  # the latter: a framework has put them there
    handlers = [load_handler(name, request) for name in settings.FILE_UPLOAD_HANDLERS]
    return MultiPartParser(
        request.META, BytesIO(request.body), handlers, request.encoding or settings.DEFAULT_CHARSET
    ).parse()


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _utf8(value)
    return json.dumps(value, sort_keys=True, cls=DjangoJSONEncoder).encode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _hash(parts: Iterable[bytes]) -> bytes:
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
