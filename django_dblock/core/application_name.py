"""Readable names of locks, in errors and in ``pg_stat_activity``.

``pg_locks`` shows only a lock's number. The statement that takes a lock also sets the transaction's
``application_name`` to ``shop lock[inventory:sku-1]``; it goes back by itself when the transaction
(or the savepoint) ends. 63 ASCII characters are all the server keeps, so a label that can't be
read back to its exact key ends in ``~`` and the last four hex digits of the lock's number.
"""

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import product
from typing import Any, NamedTuple
from zlib import crc32

from django_dblock.conf import LabelMode
from django_dblock.keys import (
    Key,
    encode,
    instance_key,
    is_instance,
    key_id,
    plain_int,
    plain_str,
)

MAX_APPLICATION_NAME = 63
MAX_LABEL = 40
MAX_NAME = 200

_OPEN = " lock["
_MORE = "+"
_MIN_BASE = MAX_APPLICATION_NAME - len(_OPEN) - MAX_LABEL - len(" +]")  # one label always fits
_MAX_PARTS_READ_BACK = 8
_READ_BACK = frozenset({str, int})
_READABLE = re.compile(r"[!-Z\\^-}]+")  # printable ASCII without space, brackets and ~
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_NOT_LABEL = re.compile(r"[^!-Z\\^-~]")


class NamedKey(NamedTuple):
    """A key with everything that is derived from its parts, which may change later."""

    parts: Key
    data: bytes
    texts: tuple[str, ...]


def named(key: tuple[Any, ...]) -> NamedKey:
    """Return the key with its encoding and its readable text.

    Raises:
        TypeError, ValueError: the parts can't be a key, as described in
            :func:`django_dblock.keys.encode`.
    """
    return NamedKey(key, encode(key), tuple(map(_text, key)))


def name(key: NamedKey) -> str:
    """Return the key for an error message: ``inventory:sku-1``. Clipped, never a line break."""
    return _clipped(key.texts)


def words(parts: Key) -> str:
    """Return the text of a key's parts: ``inventory:sku-1``. Clipped, never a line break."""
    return _clipped(map(_text, parts))


def _clipped(texts: Iterable[str]) -> str:
    text = ":".join(texts)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…"


def names(keys: Sequence[NamedKey]) -> str:
    """Return several keys for an error message."""
    shown = ", ".join(map(name, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"  # noqa: PLR2004


def label(key: NamedKey, number: int, mode: LabelMode, namespace: str = "") -> str:
    """Return the label that other sessions may read; empty if ``DBLOCK_LABELS`` is off."""
    if mode == "off":
        return ""
    whole = mode == "full" or len(key.texts) == 1
    text = ":".join(key.texts) if whole else key.texts[0]
    if (
        whole
        and len(text) <= MAX_LABEL
        and _READ_BACK.issuperset(map(type, key.parts))
        and len(key.parts) == text.count(":") + 1 <= _MAX_PARTS_READ_BACK
        and _READABLE.fullmatch(text)
        and text == ":".join(map(str, key.parts))  # nothing was escaped
    ):
        return text
    return f"{_NOT_LABEL.sub('?', text[: MAX_LABEL - 5])}~{_tag(number, namespace)}"


def _tag(number: int, namespace: str) -> str:
    """Return four hex digits of a lock; the digits match no lock in another namespace."""
    # crc32 of no bytes is 0, so without a namespace these are the last digits of the number
    return f"{(number ^ crc32(namespace.encode('utf-8', 'surrogatepass'))) & 0xFFFF:04x}"


def compose(application_name: str, labels: Iterable[str]) -> str:
    """Add labels to an application_name within its 63 bytes; ``+`` stands for omitted labels.

    No more labels are made than can fit, so a thousand locks cost no more than thirty.
    """
    base, present = split(application_name)
    shown = [label for label in present if label != _MORE]
    cut = len(shown) < len(present)
    length = len(" ".join(shown))  # with labels that are there
    most = MAX_APPLICATION_NAME - len(_OPEN) - len("]") - min(len(base), _MIN_BASE)
    added = False
    for label in labels:
        added = True
        if label in shown:  # a re-entered lock is named once
            continue
        shown.append(label)
        length += len(label) + (len(shown) > 1)
        if length > most:
            cut = True
            break
    if not added:
        return application_name
    wanted = [*shown, _MORE] if cut and length <= most else shown
    while (excess := len(text := f"{base}{_OPEN}{' '.join(wanted)}]") - MAX_APPLICATION_NAME) > 0:
        if len(base) > _MIN_BASE:
            base = base[: max(_MIN_BASE, len(base) - excess)]
        else:
            wanted = [*[item for item in wanted if item != _MORE][:-1], _MORE]
    return text


def labelled(
    application_name: str,
    keys: Sequence[NamedKey],
    numbers: Sequence[int],
    mode: LabelMode,
    namespace: str,
) -> str:
    """Add the labels of keys to an application_name, as :func:`compose` does.

    Args:
        application_name: the name that the server reported.
        keys: the keys.
        numbers: the number of each key.
        mode: ``DBLOCK_LABELS``, not off.
        namespace: the namespace of the numbers.
    """
    if len(keys) == 1:  # nearly always
        text = label(keys[0], numbers[0], mode, namespace)
        base, opened, _ = application_name.partition(_OPEN)
        if not opened:
            if len(whole := f"{base}{_OPEN}{text}]") <= MAX_APPLICATION_NAME:
                return whole
        elif application_name.endswith(f" {_MORE}]"):  # labels are left out already
            spare = max(0, len(base) - _MIN_BASE)
            if len(application_name) + len(text) >= MAX_APPLICATION_NAME + spare:
                return application_name
        return compose(application_name, [text])
    shown = (label(key, number, mode, namespace) for key, number in zip(keys, numbers, strict=True))
    return compose(application_name, shown)


def without_labels(application_name: str) -> str:
    """Return the program's own ``application_name``, without labels."""
    return split(application_name)[0]


def read(application_name: str, numbers: Iterable[int], namespace: str) -> dict[int, str]:
    """Return the lock numbers that the labels in an application_name mean, with their text."""
    found: dict[int, str] = {}
    wanted = list(numbers)
    for text in split(application_name)[1]:
        readings = _readings(text, namespace)
        tag = text.rpartition("~")[2]
        for number in wanted:
            if number in readings or (tag != text and tag == _tag(number, namespace)):
                found.setdefault(number, text)
    return found


def split(application_name: str) -> tuple[str, list[str]]:
    """Return the program's own name, and the labels behind it."""
    base, opened, rest = application_name.partition(_OPEN)
    if not opened or not rest.endswith("]"):
        return application_name, []
    return base, rest[:-1].split()


def _readings(text: str, namespace: str) -> set[int]:
    """Return the numbers of all keys of str and int parts whose label is this text."""
    parts = text.split(":")
    if len(parts) > _MAX_PARTS_READ_BACK:
        return set()
    ways: list[list[str | int]] = [
        [part, int(part)] if _INTEGER.fullmatch(part) else [part] for part in parts
    ]
    return {key_id(encode(key), namespace) for key in product(*ways)}


def _text(part: Any) -> str:  # noqa: PLR0911 - a return for each type
    if type(part) is str and part.isprintable() and len(part) < MAX_NAME:
        return part  # nearly always; other types are handled below
    if isinstance(part, Enum):
        return _text(part.value)
    if isinstance(part, tuple):
        return f"({':'.join(map(_text, part))})"
    if isinstance(part, bytes):
        return f"0x{part[:MAX_NAME].hex()}"
    if isinstance(part, int) and not isinstance(part, bool):
        number = plain_int(part)  # str() refuses very long numbers
        return str(number) if number.bit_length() <= MAX_NAME else hex(number)[:MAX_NAME]
    if is_instance(part):
        return ":".join(map(_text, instance_key(part)))
    text = plain_str(part) if isinstance(part, str) else str(part)
    text = text[: MAX_NAME + 1]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
