"""The name of a key's lease in the table: it never changes, and no two keys share a name.

Two releases of a project run side by side during a deployment, so both must make the same names.

- If all parts are ints or *plain* strings, the name is the parts with ``:`` between them:
  ``nightly-sync``, ``inventory:sku-1``, ``account:7``. A string is plain if it is printable, not
  empty, has no ``:`` and no ``~``, and does not look like an int. So an int and a string never have
  the same text in a name. An ``Enum`` member is written as its value.
- For any other key, and if that text is longer than 200 characters, the name is the key as readable
  text, cut to 200 characters, then ``~`` and 32 hex digits: the BLAKE2b-16 digest of the namespace
  and the key in the encoding of :mod:`django_dblock.keys`. So equal keys have one name.
- A plain ``DBLOCK_NAMESPACE`` and ``::`` precede the name, so that the name shows its owner; the
  readable text is cut shorter for it. With a namespace that is not plain, the name has a digest,
  and the namespace is in the digest only.
- The leases of semaphores, read-write locks, leadership and partitions have a suffix that names
  their kind: ``openai~semaphore``. Lists show the name without the suffix, with the lease's role:
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
"""The bits of the longest int that is written in a name."""


def lease_name(key: NamedKey, namespace: str) -> str:
    """Return the name of the key's lease in the table."""
    parts = [_plain(part) for part in key.parts]
    if None not in parts and (not namespace or _plain(namespace) is not None):
        text = ":".join(parts)  # type: ignore[arg-type] # checked above
        text = f"{namespace}::{text}" if namespace else text
        if len(text) <= MAX_LENGTH:
            return text
    salted = encode((namespace,)) + key.data
    words = labels.words(decode(key.data))
    if namespace and _plain(namespace) is not None:
        words = f"{namespace}::{words}"[:MAX_LENGTH]
    return f"{words}~{blake2b(salted, digest_size=16).hexdigest()}"


def _plain(part: Any) -> str | None:
    """Return the text of a part in a name; None if the part is not an int or a plain string."""
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


def shows_namespace(namespace: str) -> bool:
    """Return whether the names of the namespace's leases begin with the namespace."""
    return not namespace or _plain(namespace) is not None


def meaning_of(name: str, slot: int) -> Meaning:
    """Return what the name and slot of a lease mean."""
    key, marked, kind = name.rpartition("~")
    if not marked or kind not in ROLES:  # a lock may be named "worker"
        return Meaning(name, "fenced", "lock")
    if kind == "rwlock" and slot == 0:
        return Meaning(key, kind, "writer")
    return Meaning(key, kind, ROLES[kind])


def title_of(name: str, slot: int) -> str:
    """Return a lease's readable name: ``nightly``, ``openai (permit 2)``, ``sync (leader)``."""
    key, _, role = meaning_of(name, slot)
    if role in ("leader", "writer"):  # there is only one
        return f"{key} ({role})"
    if role == "lock":
        return f"{key} (slot {slot})" if slot else key
    return f"{key} ({role} {slot})"


def names_of(key: str) -> list[str]:
    """Return the names that leases of a key have, by their kinds."""
    return [key, *(f"{key}~{kind}" for kind in ROLES)]
