"""An answer as it is kept, and given again."""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from django.core.exceptions import ImproperlyConfigured
from django.core.serializers.json import DjangoJSONEncoder

from django_dblock.conf import NEVER_KEPT, conf
from django_dblock.exceptions import UnstorableResponse

# What the project gives us to keep, through the cipher that it has set for that.


class Undecipherable(ValueError):
    """The cipher does not read it: not its key, or not what it has written."""


def encrypted(data: bytes) -> bytes | None:
    """Return it encrypted; None where no cipher is set. What the cipher raises goes on."""
    cipher = conf.idempotency_cipher
    return None if cipher is None else bytes(cipher.encrypt(data))


def decrypted(data: bytes) -> bytes:
    """Return what was encrypted.

    Raises:
        ImproperlyConfigured: there is no cipher.
        Undecipherable: it does not read this; the cipher's own error is the cause.
    """
    cipher: Any = conf.idempotency_cipher
    if cipher is None:
        raise ImproperlyConfigured(
            "A stored answer, or the result of a step, is encrypted, and DBLOCK_IDEMPOTENCY_CIPHER "
            "is not set. Set it to what it was until the last of these has expired "
            "(DBLOCK_IDEMPOTENCY_TTL)."
        )
    try:
        return bytes(cipher.decrypt(data))
    except Exception as error:
        raise Undecipherable(f"it raised {type(error).__name__}") from error


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_STATUSES = range(100, 600)
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
"""What is no part of a field value (RFC 9110, 5.5): control characters, but for the tab. Django
refuses newlines only, and servers the rest. Half a surrogate pair is no text at all."""

BodyKind = Literal["plain", "encrypted", "dropped"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client was told: a status, headers that describe the body, and the body's bytes.

    Attributes:
        status_code: the HTTP status.
        headers: those that are kept.
        body: as it was sent; empty where it was dropped.
        dropped: whether it was not kept (``store_body=False``).
    """

    status_code: int
    headers: dict[str, str]
    body: bytes
    dropped: bool = False

    def parameters(self, *, store_body: bool) -> dict[str, Any]:
        """Put it into the form that the statements take.

        Raises:
            UnstorableResponse: it is too large, or a header is not text that can be kept.
        """
        kind: BodyKind = "plain"
        body = self.body
        if not store_body:
            kind, body = "dropped", b""
        elif len(body) > conf.idempotency_max_body:
            raise UnstorableResponse(
                f"The answer is {len(body):,} bytes long, and DBLOCK_IDEMPOTENCY_MAX_BODY allows "
                f"{conf.idempotency_max_body:,}. Answer with a Location and let the client GET the "
                f"rest, raise the setting, or give up the body with store_body=False."
            )
        elif (secret := encrypted(body)) is not None:
            kind, body = "encrypted", secret
        for name, value in self.headers.items():
            if found := _UNSENDABLE.search(value):
                raise UnstorableResponse(
                    f"The answer's header {name} has a character that no header may have, "
                    f"{found[0]!a}, so servers would refuse to send it. Take it out."
                )
        return {
            "status_code": self.status_code,
            "headers": json.dumps(self.headers),
            "body": body.hex(),
            "body_kind": kind,
        }

    @classmethod
    def read(cls, status_code: str, headers: str, body: bytes, kind: str) -> "Answer":
        """Return what the table has.

        Raises:
            ValueError: nobody but a stranger can have written that; its text says what is wrong.
            Undecipherable: likewise, or it is encrypted with a key that the cipher has not.
            ImproperlyConfigured: it is encrypted, and there is no cipher.
        """
        found = json.loads(headers)
        if kind not in get_args(BodyKind) or int(status_code) not in _STATUSES:
            raise ValueError(f"status {status_code}, body {kind!r}")
        if not isinstance(found, dict) or not all(map(_is_header, found, found.values())):
            raise ValueError("its headers are none that are ever kept")
        content = decrypted(body) if kind == "encrypted" else body
        return cls(int(status_code), found, content, dropped=kind == "dropped")


def _is_header(name: str, value: Any) -> bool:
    return (
        _HEADER_NAME.fullmatch(name) is not None
        and name.lower() not in NEVER_KEPT
        and isinstance(value, str)
        and not _UNSENDABLE.search(value)
    )


# The result of a step, as it is kept, and found again.


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it; an even number of backslashes before it would make it other text."""


def dump_steps(name: str, result: Any) -> tuple[str, Any]:
    """Return the record of a step as the table takes it, and the result as later runs find it.

    Names are kept as they are: people are shown them.

    Raises:
        ValueError: PostgreSQL could not keep it.
    """
    text = _json(name, {"result": result})
    plain = json.loads(text)[name]
    secret = encrypted(json.dumps(plain).encode())
    if secret is not None:
        text = _json(name, {"encrypted": base64.b64encode(secret).decode("ascii")})
    return text, plain["result"]


def load_steps(record: Any) -> Any:
    """Return the result that a record has; of one from before the cipher, as it stands there.

    Raises:
        ValueError: nobody but a stranger can have written that; its text says what is wrong.
        Undecipherable: likewise, or it is encrypted with a key that the cipher has not.
        ImproperlyConfigured: it is encrypted, and there is no cipher.
    """
    match record:
        case {"encrypted": str(secret)} if len(record) == 1:
            record = json.loads(decrypted(base64.b64decode(secret, validate=True)))
    match record:
        case {"result": result} if len(record) == 1:
            return result
    raise ValueError("it is none that is ever kept")


def _json(name: str, record: dict[str, Any]) -> str:
    """Return it by its name; ValueError where PostgreSQL could not keep it."""
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
