"""Whose key a request's is: nobody else's request may ever meet it."""

from hashlib import sha256
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_dblock.labels import named

_MAX_LENGTH = 255

# What stands before the colon keeps the kinds apart: who may choose a text can't write another's.
_USER, _TEXT, _VALUE, _HASH = "user", "scope", "value", "hash"


def scope_from_user(user: Any, view: str) -> str:
    """Return the scope of a client that is logged in.

    Raises:
        ImproperlyConfigured: it is not, so all strangers would share one.
    """
    pk = getattr(user, "pk", None)
    if pk is None or not getattr(user, "is_authenticated", False):
        raise ImproperlyConfigured(
            f"{view}: the client is anonymous, and @idempotent has no scope=, so all strangers "
            f"would share their keys and get each other's answers. Let only known clients in "
            f"before it (login_required below which it stands, permission_classes), or say whose "
            f"key it is: scope=lambda request: …"
        )
    return _fitted(f"{_USER}:{pk}")


def scope_from_value(value: Any, view: str) -> str:
    """Return the scope that ``scope=`` names; never that of a user, whatever it says.

    Raises:
        ImproperlyConfigured: it names nobody.
        TypeError, ValueError: it is nothing that can name somebody.
    """
    if value is None or value == "":
        raise ImproperlyConfigured(
            f"{view}: scope= returned {value!r}, so strangers would share their keys and get each "
            f"other's answers. Return what tells your clients apart, or refuse the request before."
        )
    if isinstance(value, str):
        return _fitted(f"{_TEXT}:{value}")
    key = named((value,))
    if not isinstance(value, int):  # of which the text says all
        return _fitted(f"{_VALUE}:{key.texts[0]}#{sha256(key.data).hexdigest()[:32]}")
    return _fitted(f"{_TEXT}:{value}")


def _fitted(scope: str) -> str:
    """Return it as it is, or its hash where it would not fit, or could not be stored."""
    if len(scope) <= _MAX_LENGTH and scope.isprintable():
        return scope
    return f"{_HASH}:{sha256(scope.encode('utf-8', 'surrogatepass')).hexdigest()}"
