"""Responses and results of steps as the table stores them, encrypted where a cipher is set."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from django.core.exceptions import ImproperlyConfigured
from django.core.serializers.json import DjangoJSONEncoder

from django_dblock.conf import NEVER_KEPT, conf
from django_dblock.exceptions import UnstorableResponse


class Undecipherable(ValueError):
    """The cipher can't decrypt the data: it has another key, or the data is not its own."""


def encrypted(data: bytes) -> bytes | None:
    """Return the data encrypted; None if no cipher is set. Errors of the cipher are not caught."""
    cipher = conf.idempotency_cipher
    return None if cipher is None else bytes(cipher.encrypt(data))


def decrypted(data: bytes) -> bytes:
    """Return the data decrypted.

    Raises:
        ImproperlyConfigured: no cipher is set.
        Undecipherable: the cipher can't decrypt the data; its own error is the cause.
    """
    cipher: Any = conf.idempotency_cipher
    if cipher is None:
        raise ImproperlyConfigured(
            "A stored response, or the result of a step, is encrypted, and "
            "DBLOCK_IDEMPOTENCY_CIPHER is not set. Set the former cipher until the last encrypted "
            "row has expired (DBLOCK_IDEMPOTENCY_TTL)."
        )
    try:
        return bytes(cipher.decrypt(data))
    except Exception as error:
        raise Undecipherable(f"it raised {type(error).__name__}") from error


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_STATUSES = range(100, 600)

# No part of a field value (RFC 9110, 5.5): control characters other than the tab. Django refuses
# only newlines, and servers refuse the rest. Half a surrogate pair is not text.
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")

BodyKind = Literal["plain", "encrypted", "dropped"]
_BODY_KINDS = frozenset(get_args(BodyKind))


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response: its status, the headers that are stored, and the bytes of its body.

    Attributes:
        status_code: the HTTP status.
        headers: the headers that are stored.
        body: the body as it was sent; empty if it was dropped.
        dropped: whether the body was not stored (``store_body=False``).
    """

    status_code: int
    headers: dict[str, str]
    body: bytes
    dropped: bool = False

    def parameters(self, *, store_body: bool) -> dict[str, Any]:
        """Return the response as parameters of the SQL statements.

        Args:
            store_body: whether to store the body.

        Raises:
            UnstorableResponse: the body is longer than ``DBLOCK_IDEMPOTENCY_MAX_BODY``, or a header
                has a character that can't be sent.
        """
        kind: BodyKind = "plain"
        body = self.body
        if not store_body:
            kind, body = "dropped", b""
        elif len(body) > conf.idempotency_max_body:
            raise UnstorableResponse(
                f"The response is {len(body):,} bytes long, and DBLOCK_IDEMPOTENCY_MAX_BODY allows "
                f"{conf.idempotency_max_body:,}. Respond with a Location and let the client GET "
                f"the rest, raise the setting, or don't store the body: store_body=False."
            )
        elif (secret := encrypted(body)) is not None:
            kind, body = "encrypted", secret
        for name, value in self.headers.items():
            if found := _UNSENDABLE.search(value):
                raise UnstorableResponse(
                    f"The response's header {name} has a character that no header may have, "
                    f"{found[0]!a}, so servers would refuse to send it. Remove it."
                )
        return {
            "status_code": self.status_code,
            "headers": json.dumps(self.headers),
            "body": body,
            "body_kind": kind,
        }

    @classmethod
    def read(cls, status_code: str, headers: str, body: bytes, kind: str) -> "StoredResponse":
        """Return the response that a row of the table has.

        Raises:
            ValueError: the row was not written by this package; the message says what is wrong.
            Undecipherable: the body is encrypted, and the cipher can't decrypt it.
            ImproperlyConfigured: the body is encrypted, and no cipher is set.
        """
        found = json.loads(headers)
        if kind not in _BODY_KINDS or int(status_code) not in _STATUSES:
            raise ValueError(f"status {status_code}, body {kind!r}")
        if not isinstance(found, dict) or not all(map(_is_header, found, found.values())):
            raise ValueError("its headers are not headers that are ever stored")
        content = decrypted(body) if kind == "encrypted" else body
        return cls(int(status_code), found, content, dropped=kind == "dropped")


def _is_header(name: str, value: Any) -> bool:
    return (
        _HEADER_NAME.fullmatch(name) is not None
        and name.lower() not in NEVER_KEPT
        and isinstance(value, str)
        and not _UNSENDABLE.search(value)
    )


# A NUL as JSON writes it; after an odd number of backslashes the same characters are other text.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def dump_steps(name: str, result: Any) -> tuple[str, Any]:
    """Return the record of a step as JSON text, and the result as later runs will read it.

    The name is not encrypted: operators see it.

    Raises:
        ValueError: the result is not JSON that PostgreSQL can store.
    """
    text = _json(name, {"result": result})
    plain = json.loads(text)[name]
    secret = encrypted(json.dumps(plain).encode())
    if secret is not None:
        text = _json(name, {"encrypted": base64.b64encode(secret).decode("ascii")})
    return text, plain["result"]


def load_steps(record: Any) -> Any:
    """Return the result that the record of a step has; a plain record needs no cipher.

    Raises:
        ValueError: the record was not written by this package; the message says what is wrong.
        Undecipherable: the record is encrypted, and the cipher can't decrypt it.
        ImproperlyConfigured: the record is encrypted, and no cipher is set.
    """
    match record:
        case {"encrypted": str(secret)} if len(record) == 1:
            record = json.loads(decrypted(base64.b64decode(secret, validate=True)))
    match record:
        case {"result": result} if len(record) == 1:
            return result
    raise ValueError("it is not a record that is ever stored")


def _json(name: str, record: dict[str, Any]) -> str:
    """Return the record under its name as JSON text.

    Raises:
        ValueError: the record is not JSON that PostgreSQL can store.
    """
    try:
        text = json.dumps(
            {name: record}, cls=DjangoJSONEncoder, allow_nan=False, ensure_ascii=False
        )
        text.encode()  # half a surrogate pair is no text
    except (TypeError, ValueError) as error:
        raise ValueError(f"The result of step {name!r} is not JSON: {error}.") from error
    if _NUL.search(text):
        raise ValueError(f"The result of step {name!r} has a NUL, which can't be stored.")
    return text
