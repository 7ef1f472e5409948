"""The identity of a request: its namespace, scope and key; and its fingerprint."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from numbers import Number
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.advisory.acquire import Request
from django_dblock.conf import conf
from django_dblock.core.application_name import NamedKey, named
from django_dblock.keys import encode, is_instance, numbered, plain_str

ONCE = "once"
"""The scope of ``run_once`` and ``once_per``."""

_SHOWN = 6


def masked(key: str) -> str:
    """Return the beginning of a key. A whole key is a secret: it gives access to the response."""
    return f"{key[: min(_SHOWN, len(key) // 2)]}…"


def shown_key(scope: str, key: str) -> str:
    """Return the key as operators see it: of a ``once_per`` job its name and period, else masked.

    No client makes the key of a job, and the key gives no access to the job's result.
    """
    job, mark, _ = key.rpartition("#")
    if mark and scope == ONCE and job.startswith("once_per:"):
        return job
    return masked(key)


@dataclass(frozen=True, slots=True)
class Identity:
    """The name of one request: ``(namespace, scope, key)`` in the database of an alias.

    Attributes:
        scope: the client that owns the key.
        key: the client's key.
        using: the database alias.
        namespace: ``DBLOCK_NAMESPACE`` at the moment when the request came. It is read once, so
            the lock, the row and the derived keys of one run agree.
    """

    scope: str
    key: str
    using: str
    namespace: str = field(default_factory=lambda: conf.namespace)

    @property
    def facts(self) -> dict[str, str]:
        """The data that each error and signal about this request carries."""
        return {"scope": self.scope, "key": shown_key(self.scope, self.key), "using": self.using}

    def lock(self, connection: BaseDatabaseWrapper) -> Request:
        """Return the request for the advisory lock. Its label shows :func:`shown_key`."""
        shown = ("idempotency", self.scope, shown_key(self.scope, self.key))
        parts = ("django_dblock.idempotency", self.scope, self.key)
        data, number = numbered(parts, self.namespace)
        key = NamedKey(shown, data, shown)
        return Request((key,), (number,), False, connection, self.namespace)  # noqa: FBT003 - fast

    def parameters(self, asked: "RequestFingerprint | None" = None) -> dict[str, Any]:
        """Return the identity, and the fingerprint if given, in the form that statements take."""
        parameters = {"namespace": self.namespace, "scope": self.scope, "key": self.key}
        return parameters if asked is None else {**parameters, **asked.parameters()}

    def derived_key(self, name: str) -> str:
        """Return a key for another service's own idempotency; the same in each run of the request.

        It has 64 hexadecimal digits, which reveal neither scope nor key.
        """
        data = encode(("django_dblock.derived", self.namespace, self.scope, self.key, name))
        return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class RequestFingerprint:
    """The fingerprint of a request, and its method and path for lists."""

    fingerprint: bytes
    fingerprint_version: int
    method: str = ""
    path: str = ""

    def parameters(self) -> dict[str, Any]:
        """Return the fingerprint in the form that the statements take."""
        return {
            "fingerprint": self.fingerprint,
            "fingerprint_version": self.fingerprint_version,
            "method": self.method,
            "path": self.path,
        }


# Scopes: the client that owns a key. Two clients must never share one.


_MAX_LENGTH = 255

# The prefix keeps the kinds apart: a client that chooses its text can't forge another kind's scope.
_USER, _TEXT, _VALUE, _HASH = "user", "scope", "value", "hash"
_ACCOUNT = "account"


def scope_from_user(user: Any, view: str) -> str:
    """Return the scope of a logged-in user.

    The scope names the model too, unless that is ``AUTH_USER_MODEL``: an API may authenticate
    merchants or devices, whose primary keys are those of other users as well.

    Raises:
        ImproperlyConfigured: the user is anonymous, so all strangers would share one scope.
    """
    pk = getattr(user, "pk", None)
    if pk is None or not getattr(user, "is_authenticated", False):
        raise ImproperlyConfigured(
            f"{view}: the client is anonymous, and @idempotent has no scope=, so all strangers "
            f"would share their keys and get each other's responses. Refuse anonymous clients "
            f"before @idempotent (login_required above it, permission_classes), or name the "
            f"client: scope=lambda request: …"
        )
    model = _other_model(user)
    return _fitted(f"{_USER}:{pk}" if model is None else f"{_ACCOUNT}:{model}:{pk}")


def _other_model(user: Any) -> str | None:
    """Return the label of a user's model; None for AUTH_USER_MODEL, and for what is no model.

    A user without a model, such as that of a stateless token, stands for one of AUTH_USER_MODEL.
    """
    meta = getattr(user, "_meta", None)
    if meta is None or meta.label == settings.AUTH_USER_MODEL:
        return None
    models = (meta.concrete_model, *meta.all_parents)  # of a proxy, of a child
    labels = [model._meta.label_lower for model in models]  # noqa: SLF001 - Django's public Meta
    return None if settings.AUTH_USER_MODEL.lower() in labels else labels[0]


def scope_from_value(value: Any, view: str) -> str:
    """Return the scope that ``scope=`` returned; it never equals the scope of a user.

    Raises:
        ImproperlyConfigured: the value identifies no particular client, so all such clients would
            share one scope. :func:`_is_nobody` lists such values.
        TypeError: the value is of a type that no key can have; for example a callable, or a
            coroutine.
        ValueError: the value is of such a type, but can't be a key; for example an unsaved model
            instance.
    """
    if _is_nobody(value):
        raise ImproperlyConfigured(
            f"{view}: scope= returned {_described(value)}, which identifies no particular client. "
            f"Strangers would share their keys and get each other's responses. Return a value that "
            f"tells your clients apart, or refuse the request before @idempotent."
        )
    if callable(value) and not is_instance(value):
        raise TypeError(
            f"{view}: scope= returned {value!r}, which is a callable. Return the value that it "
            f"returns: scope=lambda request: request.user.get_username()"
        )
    if isinstance(value, str):
        return _fitted(f"{_TEXT}:{value}")
    key = named((value,))
    if not isinstance(value, int):  # the text of an int says everything about it
        return _fitted(f"{_VALUE}:{key.texts[0]}#{sha256(key.data).hexdigest()[:32]}")
    return _fitted(f"{_TEXT}:{value}")


# Texts that code writes for a missing value, in lower case: str(None), str(AnonymousUser()),
# JavaScript's undefined, pandas' nan, a missing number.
_NOBODY = frozenset(
    {"", "0", "none", "null", "nil", "undefined", "nan", "false", "anonymous", "anonymoususer"}
)
# str(None) and str(AnonymousUser()) as one part of a composed text: f"{tenant}:{request.user.pk}".
_NOBODY_PART = re.compile(r"(?:^|[\s:/|,;#@.-])(?:None|AnonymousUser)(?:$|[\s:/|,;#@.-])")


def _is_nobody(value: Any) -> bool:  # noqa: PLR0911 - a return for each type
    """Return whether a scope identifies no particular client.

    Such values are None, an anonymous user, an empty text or container, zero in any type, a text
    that code writes for a missing value, and a container with any such value in it.
    """
    if value is None or getattr(value, "is_anonymous", False) is True:
        return True
    if isinstance(value, Enum):
        return _is_nobody(value.value)
    if isinstance(value, str):
        text = value if type(value) is str else plain_str(value)
        return text.strip().lower() in _NOBODY or bool(_NOBODY_PART.search(text))
    if isinstance(value, bytes | bytearray):
        return not bytes(value).strip(b"\0 \t\r\n")
    if isinstance(value, UUID):
        return value.int == 0  # RFC 9562, 5.9 "Nil UUID"
    if isinstance(value, Mapping | AbstractSet | Sequence):
        return not value or any(map(_is_nobody, value))
    number: Any = value  # NaN is the only number that doesn't equal itself
    return isinstance(value, Number) and bool(number == 0 or number != number)  # noqa: PLR0124


def _described(value: Any) -> str:
    """Return a value for an error message: never a person's name, and never a query."""
    plain = value is None or isinstance(value, str | bytes | Number | UUID)
    return repr(value)[:80] if plain else f"an object of type {type(value).__name__}"


def _fitted(scope: str) -> str:
    """Return the scope, or its hash if the scope is too long or not printable."""
    if len(scope) <= _MAX_LENGTH and scope.isprintable():
        return scope
    return f"{_HASH}:{sha256(scope.encode('utf-8', 'surrogatepass')).hexdigest()}"


# The ``Idempotency-Key`` header: one key, written in one of two ways. Pure.
#
# The draft says it is a Structured Header string, ``"abc"``; Stripe and most clients send it bare,
# ``abc``. Both are the same key.
#
# Sources: draft-ietf-httpapi-idempotency-key-header-07, 2.1; RFC 8941, 3.3.3 and 3.1.2.


HEADER = "Idempotency-Key"
MAX_LENGTH = 255

# RFC 8941: printable ASCII, of which " and \ are escaped; parameters may follow, which
# mean nothing here. They are skipped, so it is enough to check that there is no second value.
_QUOTED = re.compile(
    r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
    r'(?:[ ]*;[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[ !#-\[\]-~]|\\["\\])*"|[^\s",;]+))?)*'
)
_BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")  # printable ASCII without space " , ; \


_UNTERMINATED = re.compile(r'"(?:[^"\\]|\\.)*\\?', re.DOTALL)


class InvalidKey(ValueError):
    """The text of a header is not one key; the message says why and does not repeat the text.

    Attributes:
        reason: as in :class:`~django_dblock.IdempotencyKeyInvalid`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse(value: str, *, strict: bool) -> str:
    """Return the key that a header's value names.

    Args:
        value: the header's value, as it came.
        strict: take the quoted form only.

    Raises:
        InvalidKey: the value is not one key.
    """
    text = value.strip(" \t")
    if not text:
        raise InvalidKey("empty", "it is empty")
    if len(text) > 8 * MAX_LENGTH:  # before any other check
        raise InvalidKey("too_long", f"it is longer than {MAX_LENGTH} characters")
    if match := _QUOTED.fullmatch(text):
        key = re.sub(r"\\(.)", r"\1", match[1])
    elif _UNTERMINATED.fullmatch(text):
        raise InvalidKey("unterminated", "it has an opening quote and no closing quote")
    elif strict:
        raise InvalidKey(
            "unquoted", 'it is not one quoted string, as in "8e03978e-40d5-43dd-bc93-6894a57f9324"'
        )
    elif _BARE.fullmatch(text):
        key = text
    else:
        raise InvalidKey(
            "not_one_key",
            "it is not one key: printable ASCII without spaces, commas and semicolons, or a quoted "
            "string",
        )
    if not key:
        raise InvalidKey("empty", "it is empty")
    if len(key) > MAX_LENGTH:
        raise InvalidKey("too_long", f"it is longer than {MAX_LENGTH} characters")
    return key
