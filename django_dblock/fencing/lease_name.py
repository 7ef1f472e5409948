"""The name under which a key's lease stands in the table: fixed, and no two keys share one.

Two releases of a project run side by side during a deployment, so they must agree on every name.

- A key whose parts are ints and *plain* strings is its parts with ``:`` between them:
  ``nightly-sync``, ``inventory:sku-1``, ``account:7``. A string is plain if it is printable, not
  empty, has no ``:`` and no ``~``, and does not read as an int; so what stands between the colons
  says whether it was one. An ``Enum`` member is its value.
- Any other key, and one longer than 200 characters, is its encoding (:mod:`django_dblock.keys`) put
  into words and cut to 200 characters, then ``~`` and 32 hex digits: the BLAKE2b-16 digest of the
  namespace and the key as they are encoded there. So keys that are equal there have one name.
- ``DBLOCK_NAMESPACE`` goes before either, with ``::`` between them, where it is plain, so that a
  name tells whose it is; the words are cut shorter for it. A namespace that is not plain makes the
  key one of the other kind, and stands in the digest alone.
- The leases of semaphores, read-write locks, leadership and partitions have a suffix that tells
  their kind: ``openai~semaphore``. People are shown the name without it, with the lease's role:
  ``openai (permit 2)``.
"""

import re
from enum import Enum
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

from django_dblock.core import application_name as labels
from django_dblock.core.application_name import NamedKey
from django_dblock.keys import decode, encode, plain_int, plain_str

Role: TypeAlias = Literal["lock", "permit", "writer", "reader", "leader", "partition", "worker"]

ROLES: dict[str, Role] = {
    "semaphore": "permit",
    "rwlock": "reader",  # the writer has slot 0
    "leader": "leader",
    "partition": "partition",
    "worker": "worker",
}
"""What a lease of each kind is to its holder."""

MAX_LENGTH = 200

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_INTEGERS_BEGIN = frozenset("-0123456789")
_LONGEST_INT = 128
"""Bits."""


def lease_name(key: NamedKey, namespace: str) -> str:
    """Return the text under which the key's lease stands in the table."""
    parts = [_plain(part) for part in key.parts]
    if None not in parts and (not namespace or _plain(namespace) is not None):
        text = ":".join(parts)  # type: ignore[arg-type] # there is no None
        text = f"{namespace}::{text}" if namespace else text
        if len(text) <= MAX_LENGTH:
            return text
    salted = encode((namespace,)) + key.data
    words = labels.words(decode(key.data))
    if namespace and _plain(namespace) is not None:
        words = f"{namespace}::{words}"[:MAX_LENGTH]
    return f"{words}~{blake2b(salted, digest_size=16).hexdigest()}"


def _plain(part: Any) -> str | None:
    """Return the part as it stands in a name; None if it can't."""
    if type(part) is not str:
        if isinstance(part, Enum):
            return _plain(part.value)
        if isinstance(part, int) and not isinstance(part, bool):
            number = plain_int(part)
            return str(number) if number.bit_length() <= _LONGEST_INT else None
        if not isinstance(part, str):
            return None
        part = plain_str(part)
    if not part or ":" in part or "~" in part or not part.isprintable():
        return None
    return None if part[0] in _INTEGERS_BEGIN and _INTEGER.fullmatch(part) else part


class Meaning(NamedTuple):
    """What a lease's name and slot in the table mean.

    Attributes:
        key: the name without the suffix of its kind.
        kind: as in the signals: ``fenced``, ``semaphore``, ``rwlock``, ``leader``, ``partition`` or
            ``worker``.
        role: what the lease is to its holder.
    """

    key: str
    kind: str
    role: Role


def meaning_of(name: str, slot: int) -> Meaning:
    """Return what the name and slot of a lease mean."""
    key, _, kind = name.rpartition("~")
    if kind not in ROLES:
        return Meaning(name, "fenced", "lock")
    if kind == "rwlock" and slot == 0:
        return Meaning(key, kind, "writer")
    return Meaning(key, kind, ROLES[kind])


def title_of(name: str, slot: int) -> str:
    """Return a lease's name for people: ``nightly``, ``openai (permit 2)``, ``sync (leader)``."""
    key, _, role = meaning_of(name, slot)
    if role in ("leader", "writer"):  # there is one
        return f"{key} ({role})"
    if role == "lock":
        return f"{key} (slot {slot})" if slot else key
    return f"{key} ({role} {slot})"


def names_of(key: str) -> list[str]:
    """Return the names that leases of a key have, by their kinds."""
    return [key, *(f"{key}~{kind}" for kind in ROLES)]
