"""Entity tags: a row's version as an ``ETag``, and the versions that an ``If-Match`` names.

A tag is ``"7-0123456789abcdef"``: the version, and a digest of the model, the primary key and the
namespace (``DBLOCK_NAMESPACE``), which can't be computed without the project's ``SECRET_KEY``. So
the tag of one row never matches another row or tenant, and reveals no primary key. A variant of the
representation follows the digest.

A row that is deleted and made again with the same primary key starts at version 1 again, and after
a restore or a failover that lost commits a row reaches versions a second time. Only then may a tag
that a client has kept name a state that the client has not seen. No column of the row distinguishes
these histories, and no query would find out; docs/how-to/etags.md describes what to do.

Proxies change the tags that a client sends back. Django's GZipMiddleware, nginx and others make
them weak (``W/"7-…"``), Apache's mod_deflate and mod_brotli put ``-gzip`` or ``-br`` inside the
quotes, others ``;gzip``. RFC 9110 demands the strong comparison for ``If-Match``, which would
refuse each of these tags. Here a tag names the state of a row and not a sequence of bytes. So only
the version and the digest are compared; a ``W/`` and the text after the digest are ignored.

Source: RFC 9110, 8.8.3 ETag, 13.1.1 If-Match.
"""

import re
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import router
from django.utils.crypto import salted_hmac

from django_dblock.conf import conf
from django_dblock.versioning import rollback
from django_dblock.versioning.field import MAX_VERSION
from django_dblock.versioning.save import carried_version, conflict

if TYPE_CHECKING:
    from django_dblock.versioning.save import GuardedSave

# One member of the list, with the commas around it. Empty members are allowed (RFC 9110, 5.6.1).
_MEMBER = re.compile(r'[ \t,]*(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?=,|\Z)')
_REST = re.compile(r"[ \t,]*\Z")
_OURS = re.compile(r"(0|[1-9][0-9]{0,18})-([0-9a-f]{16})(?:[-;].*)?\Z")
_VARIANT = re.compile(r"[A-Za-z0-9._~+-]*\Z")  # no comma: Django splits lists of tags there


class MalformedTags(ValueError):
    """The header is not a list of entity tags."""


def etag(instance: "GuardedSave", variant: str = "") -> str:
    """Return the strong entity tag of the version that the instance carries.

    Guarantees: two states of a row have different tags, and so have two rows. Nothing is sent.

    Does not guarantee that equal tags mean equal representations. A representation may also depend
    on the language, the user, or related rows: name these in ``variant``, or bump the version with
    ``touch_version()`` when they change. A tag is no secret and no permission.

    Args:
        instance: the object, as it was read or written.
        variant: the name of the representation among several of one URL, such as ``json`` or
            ``html-de``; letters, digits and ``. _ ~ + -``.

    Raises:
        MissingVersion: the instance carries no version.
        StaleObject: the instance carries a version that was rolled back.
        ValueError: the variant has a character that a tag can't have.

    Source: RFC 9110, 8.8.3 ETag.
    """
    if not _VARIANT.match(variant):
        raise ValueError(f"variant={variant!r} has other characters than A-Z a-z 0-9 . _ ~ + -")
    using = instance._state.db or router.db_for_write(type(instance), instance=instance)
    if rollback.is_undone(instance):
        # The instance's values are not in the row, although its earlier version may be.
        version = instance.__dict__[instance._version_field.attname]
        raise conflict(instance, version, using, rolled_back=True)
    return tag(carried(instance), digest(instance), variant)


def tag(version: int, digest: str, variant: str = "") -> str:
    """Return the tag of a version of the row with this digest."""
    return f'"{version}-{digest}-{variant}"' if variant else f'"{version}-{digest}"'


def carried(instance: "GuardedSave") -> int:
    """Return the version that the instance was last read or written with.

    Raises:
        MissingVersion: the instance carries no version.
        StaleObject: the row was inserted in a transaction that was rolled back.
    """
    using = instance._state.db or router.db_for_write(type(instance), instance=instance)
    return carried_version(instance, using)


def digest(instance: "GuardedSave", secret: str | bytes | None = None) -> str:
    """Return the digest of the row in its tags."""
    model = instance._version_field.model._meta.label_lower
    fields: Any = instance._meta.pk_fields
    key = [str(field.to_python(getattr(instance, field.attname))) for field in fields]
    # Two tenants may have rows with the same model and key.
    namespace = [conf.namespace] if conf.has_namespaces else []
    # PostgreSQL's text has no NUL, so two different keys are never joined to the same text.
    value = "\0".join([model, *key, *namespace])
    return salted_hmac("django_dblock.etag", value, secret, algorithm="sha256").hexdigest()[:16]


def named(header: str) -> set[tuple[int, str]]:
    """Return the versions and digests in a list of tags; tags of another form are left out.

    Raises:
        MalformedTags: the header is not a list of entity tags.
    """
    found, at = set(), 0
    while member := _MEMBER.match(header, at):
        at = member.end()
        if (ours := _OURS.match(member[1])) and (version := int(ours[1])) <= MAX_VERSION:
            found.add((version, ours[2]))
    if not at or not _REST.match(header, at):
        raise MalformedTags(header)
    return found


def newest(instance: "GuardedSave", tags: AbstractSet[tuple[int, str]]) -> int | None:
    """Return the highest version of this row among the tags.

    Versions only grow, so a client that has seen this version knows that the other versions are
    old.
    """
    secrets = [None, *settings.SECRET_KEY_FALLBACKS]
    mine = {digest(instance, secret) for secret in secrets}
    return max((version for version, of in tags if of in mine), default=None)
