"""Whose key a request's is: nobody else's request may ever meet it."""

from hashlib import sha256
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_dblock.labels import named

_MAX_LENGTH = 255


def of_user(user: Any, view: str) -> str:
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
    return _fitted(f"user:{pk}")


def of_value(value: Any, view: str) -> str:
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
        return _fitted(f"scope:{value}")
    key = named((value,))
    if not isinstance(value, int):  # of which the text says all
        return _fitted(f"scope:{key.texts[0]}#{sha256(key.data).hexdigest()[:32]}")
    return _fitted(f"scope:{value}")


def _fitted(scope: str) -> str:
    """Return it as it is, or its hash where it would not fit, could not be stored, or looks so."""
    kind, _, name = scope.partition(":")
    if len(scope) <= _MAX_LENGTH and scope.isprintable() and not name.startswith("#"):
        return scope
    return f"{kind}:#{sha256(scope.encode('utf-8', 'surrogatepass')).hexdigest()}"
