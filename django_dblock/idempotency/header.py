"""The ``Idempotency-Key`` header: one key, written in one of two ways. Pure.

The draft says it is a Structured Header string, ``"abc"``; Stripe and most clients send it bare,
``abc``. Both are the same key.

Sources: draft-ietf-httpapi-idempotency-key-header-07, 2.1; RFC 8941, 3.3.3 and 3.1.2.
"""

import re

HEADER = "Idempotency-Key"
MAX_LENGTH = 255

# RFC 8941: printable ASCII, of which " and \ are escaped; parameters may follow, and mean nothing
# here. They are only passed over, so it is enough to see that no second value is among them.
_QUOTED = re.compile(
    r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
    r'(?:[ ]*;[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[ !#-\[\]-~]|\\["\\])*"|[^\s",;]+))?)*'
)
_BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")  # printable ASCII, but for space " , ; \


def parse(value: str, *, strict: bool) -> str:
    """Return the key that a header's value names.

    Args:
        value: the header's, as it came.
        strict: take the quoted form only.

    Raises:
        ValueError: it is not one key; its text says why, and does not repeat it.
    """
    text = value.strip(" \t")
    if not text:
        raise ValueError("it is empty")
    if len(text) > 8 * MAX_LENGTH:  # before anything looks at it
        raise ValueError(f"it is longer than {MAX_LENGTH} characters")
    if match := _QUOTED.fullmatch(text):
        key = re.sub(r"\\(.)", r"\1", match[1])
    elif strict:
        raise ValueError(
            'it is not one quoted string, as in "8e03978e-40d5-43dd-bc93-6894a57f9324"'
        )
    elif _BARE.fullmatch(text):
        key = text
    else:
        raise ValueError(
            "it is not one key: printable ASCII without spaces, commas and semicolons, or a quoted "
            "string"
        )
    if not key:
        raise ValueError("it is empty")
    if len(key) > MAX_LENGTH:
        raise ValueError(f"it is longer than {MAX_LENGTH} characters")
    return key
