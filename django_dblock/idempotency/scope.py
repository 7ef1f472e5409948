"""Whose key a request's is: nobody else's request may ever meet it."""

import re
from hashlib import sha256
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_dblock.labels import named

_MAX_LENGTH = 255
_SHOWN = 200
_HASHED = re.compile(r"\A#|#[0-9a-f]{32}\Z")


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
    if isinstance(value, str | int):  # whose text says all
        return _fitted(f"scope:{value}")
    key = named((value,))
    return f"scope:{key.texts[0][:_SHOWN]}#{sha256(key.data).hexdigest()[:32]}"


def _fitted(scope: str) -> str:
    """Return it as it is, or its hash where it would not fit, or could not be stored.

    So, too, where it looks like a hash: another's is no secret, and must not become one's scope.
    """
    kind, _, whose = scope.partition(":")
    if len(scope) <= _MAX_LENGTH and scope.isprintable() and not _HASHED.search(whose):
        return scope
    return f"{kind}:#{sha256(scope.encode('utf-8', 'surrogatepass')).hexdigest()}"
