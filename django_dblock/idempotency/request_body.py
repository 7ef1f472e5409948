"""The body of a request, read for its fingerprint and left unread for the view.

A view may read its body in ways that exclude each other: as bytes (``request.body``), as a form
(``request.POST``), by upload handlers of its own, or as a stream (``request.read()``). What is read
here is put back, so that the view has the same choice, and the same limits, as without us.
"""

import weakref
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import IO, Any, cast

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler
from django.core.handlers.wsgi import LimitedStream
from django.http import HttpRequest
from django.http.multipartparser import MultiPartParser
from django.http.request import UnreadablePostError

_CHUNK = 64 * 1024

_LIMITED: Any = LimitedStream  # the stubs don't know how far it was read


def is_unread(request: HttpRequest) -> bool:
    """Return whether the body has not been read yet, neither as bytes nor as a stream."""
    inner: Any = request
    return not (inner._read_started or hasattr(inner, "_body"))  # noqa: SLF001 - Django's state


def is_unread_and_too_large(request: HttpRequest) -> bool:
    """Return whether nobody has read the body, and ``request.body`` would refuse to: too large."""
    limit: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    if limit is None or not is_unread(request):
        return False
    stream = _stream(request)
    if _is_seekable(stream):  # the length in the header may be absent, as of a chunked body
        return stream.seek(0, 2) > limit
    announced = request.META.get("CONTENT_LENGTH") or "0"
    return announced.isdigit() and int(announced) > limit  # no other length is one, says Django


def chunks(request: HttpRequest) -> tuple[int, Iterator[bytes]]:
    """Return the length of an unread body and its bytes in chunks; put it back afterwards.

    Raises:
        UnreadablePostError: the client has gone while its body was read.
    """
    stream = _rewindable(request)
    return stream.seek(0, 2), _read(stream)


def refuse_cut_off(request: HttpRequest) -> None:
    """Raise if a body that was read has ended before the length that the client has announced.

    Servers such as gunicorn end the stream when the client's connection breaks, as if the body
    ended there. The key would belong to a part of the body, and a retry with all of it would be
    refused.

    Raises:
        UnreadablePostError: the body is shorter.
    """
    inner: Any = request
    stream = getattr(inner, "_stream", None)
    if isinstance(stream, BytesIO):  # Django's, of a body that was read as bytes
        read, announced = stream.getbuffer().nbytes, request.META.get("CONTENT_LENGTH") or "0"
        # a middleware may have decoded the stream
        if "HTTP_CONTENT_ENCODING" in request.META or not announced.isdigit():
            return
        if read < int(announced):
            raise _cut_off(read, int(announced))
    elif (
        isinstance(stream, _LIMITED)
        and request.content_type == "multipart/form-data"
        and hasattr(inner, "_files")
        and inner._read_started  # noqa: SLF001
        and not stream.read(1)  # an upload handler may have stopped the parser: then there is more
        and stream._pos < stream.limit  # noqa: SLF001
    ):
        raise _cut_off(stream._pos, stream.limit)  # noqa: SLF001


def _cut_off(read: int, announced: int) -> UnreadablePostError:
    return UnreadablePostError(f"The body was cut off after {read} of {announced} bytes.")


def form(request: HttpRequest) -> tuple[Any, Any]:
    """Return the fields and the files of a multipart body, whatever its method is.

    A body that has not been read is parsed by a handler that keeps no file, only its digest.

    Raises:
        MultiPartParserError: the body is not multipart.
        RawPostDataException: other code has read the body as a stream, or has begun to.
        UnreadablePostError: the client has gone while its body was read.
    """
    inner: Any = request
    stream: Any
    if request.method == "POST" and hasattr(inner, "_files"):
        refuse_cut_off(request)
        return request.POST, request.FILES  # by the CSRF check, a middleware or REST framework
    if is_unread(request):
        stream = _rewindable(request)
    elif hasattr(inner, "_files") and not hasattr(inner, "_body"):
        # A PUT or a PATCH that REST framework has parsed as a stream. It puts the form here.
        refuse_cut_off(request)
        return request.POST, request.FILES
    else:
        stream = BytesIO(request.body)
        refuse_cut_off(request)
    stream.seek(0)
    handler = _DigestHandler(request)
    encoding = request.encoding or settings.DEFAULT_CHARSET
    fields, files = MultiPartParser(request.META, stream, [handler], encoding).parse()
    stream.seek(0)
    return fields, files


def digest(file: Any) -> bytes:
    """Return the SHA-256 of a file's content; leave the file as it was."""
    known: bytes | None = getattr(file, "sha256", None)
    if known is not None:
        return known
    found = sha256()
    for chunk in file.chunks():
        found.update(chunk)
    file.seek(0)
    return found.digest()


class _DigestedFile(UploadedFile):  # type: ignore[type-arg]  # no class at run time
    """A file of a form of which only the name, the type, the size and the digest are kept."""

    sha256: bytes


class _DigestHandler(FileUploadHandler):
    """An upload handler that keeps no content."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self._digest = sha256()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:  # noqa: ARG002 - Django's
        self._digest.update(raw_data)

    def file_complete(self, file_size: int) -> _DigestedFile:
        file = _DigestedFile(name=self.file_name, content_type=self.content_type, size=file_size)
        file.sha256 = self._digest.digest()
        return file


def _stream(request: HttpRequest) -> IO[bytes]:
    inner: Any = request
    stream: IO[bytes] = inner._stream  # noqa: SLF001 - where request.read() reads from
    return stream


def _is_seekable(stream: Any) -> bool:
    return hasattr(stream, "seekable") and bool(stream.seekable())


def _rewindable(request: HttpRequest) -> IO[bytes]:
    """Return the stream of an unread body; one that can't be rewound is replaced by a copy."""
    stream: Any = _stream(request)
    if not _is_seekable(stream):
        # ASGI's handler spools every body in the same way, with the same limit.
        spool: Any = SpooledTemporaryFile(settings.FILE_UPLOAD_MAX_MEMORY_SIZE)  # noqa: SIM115
        weakref.finalize(request, spool.close)
        try:
            while chunk := stream.read(_CHUNK):
                spool.write(chunk)
        except OSError as error:
            raise UnreadablePostError(*error.args) from error
        if isinstance(stream, _LIMITED) and stream._pos < stream.limit:  # noqa: SLF001
            raise _cut_off(stream._pos, stream.limit)  # noqa: SLF001
        inner: Any = request
        inner._stream = stream = spool  # noqa: SLF001 - as ASGIRequest gets its own
    return cast("IO[bytes]", stream)


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    stream.seek(0)
    while chunk := stream.read(_CHUNK):
        yield chunk
    stream.seek(0)
