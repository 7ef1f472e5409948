"""What the project gives us to keep, through the cipher that it has set for that."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_dblock.conf import conf


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
