"""The result of a step, as it is kept, and found again."""

import base64
import json
import re
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from django_dblock.idempotency.cipher import decrypted, encrypted

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
