"""The signed token of a page: the version of a row, and the values that the form showed.

The browser sends the token back, so that a posted form can be compared with the row that the form
showed. The token is readable, so it holds only values that the page shows anyway.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ValidationError
from django.core.signing import BadSignature, Signer
from django.utils.translation import gettext_lazy as _

from django_dblock.conf import conf

if TYPE_CHECKING:
    from django.db.models import Field

SALT: Final = "django_dblock.versioning.web.signed_version"

LONGEST: Final = 4000
"""The longest value, in characters, that a token holds; longer originals are unknown."""

MISSING: Final = _(
    "This page came back without the version that it showed, so nothing was saved. Load it again "
    "and repeat your change."
)
UNREADABLE: Final = _(
    "The version that this page sent back is not the one it was given, so nothing was saved. Load "
    "the page again and repeat your change."
)

CODES: Final = frozenset({"version_missing", "version_unreadable"})


@dataclass(frozen=True, slots=True)
class Seen:
    """The version and the values that a page has shown to its user.

    Attributes:
        version: the version of the row.
        original: values by field name, encoded by :func:`encoded`.
    """

    version: int
    original: Mapping[str, Any]


def dump(label: str, pk: Any, version: int, original: Mapping[str, Any]) -> str:
    """Return a token of a version and the values shown with it, valid for this row only."""
    return _signer(label, pk).sign_object([version, dict(original)], compress=True)


def load(label: str, pk: Any, token: object) -> Seen:
    """Return the version and the values that :func:`dump` signed for this row.

    Raises:
        ValidationError: the token is missing (code ``"version_missing"``); or it was changed, or is
            of another row (``"version_unreadable"``).
    """
    if not token:
        raise ValidationError(MISSING, code="version_missing")
    try:
        version, original = _signer(label, pk).unsign_object(str(token))
    except (BadSignature, ValueError) as error:  # ValueError: a text that can't be encoded
        raise ValidationError(UNREADABLE, code="version_unreadable") from error
    return Seen(version, original)


def dump_many(label: str, versions: Mapping[Any, int]) -> str:
    """Return a token of the versions of many rows of one model, by primary key."""
    return _signer(label, "*").sign_object({str(pk): each for pk, each in versions.items()})


def load_many(label: str, token: object) -> dict[str, int]:
    """Return the versions that :func:`dump_many` signed, by the primary keys' text.

    Raises:
        ValidationError: the token is missing (code ``"version_missing"``); or it was changed, or is
            of another model (``"version_unreadable"``).
    """
    if not token:
        raise ValidationError(MISSING, code="version_missing")
    try:
        found: dict[str, int] = _signer(label, "*").unsign_object(str(token))
    except (BadSignature, ValueError) as error:
        raise ValidationError(UNREADABLE, code="version_unreadable") from error
    return found


def _signer(label: str, pk: Any) -> Signer:
    # A token is bound to its row by the salt, which takes no room and is always checked.
    # Two tenants may have rows with the same model and key.
    namespace = f":{conf.namespace!r}" if conf.has_namespaces else ""
    return Signer(salt=f"{SALT}:{label}:{pk!r}{namespace}")


def encoded(values: Iterable[tuple["Field[Any, Any]", Any]]) -> dict[str, Any]:
    """Return the values of columns by field name for JSON; leave out long and unencodable ones."""
    found = {}
    for field, value in values:
        if hasattr(value, "resolve_expression"):
            continue
        plain = value
        if not (value is None or isinstance(value, bool | int | str)):
            plain = field.value_to_string(SimpleNamespace(**{field.attname: value}))  # type: ignore[arg-type]
        try:
            text = json.dumps(plain)
        except TypeError:  # a JSONField with an encoder of its own
            continue
        if len(text) <= LONGEST:
            found[field.name] = plain
    return found
