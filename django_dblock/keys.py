"""The encoding of a key, ``("inventory", sku)``, as the signed 64-bit number to lock.

The encoding never changes, because two releases run side by side during a deploy and must agree.
This module does not import Django.

A *value* is written as one tag byte, the payload's length as 8 bytes big-endian, and the payload:

====  ==================================================================================
tag   payload
====  ==================================================================================
s     ``str``: UTF-8; a lone surrogate as its three bytes (Python's ``surrogatepass``).
      No Unicode normalisation: "é" in one and in two code points are two keys.
i     ``int``: two's complement, big-endian, ``bit_length() // 8 + 1`` bytes
b     ``bool``: one byte, 0 or 1
y     ``bytes``: unchanged
u     ``UUID``: the UUID's 16 bytes
n     ``Decimal``: ASCII, sign, digits without trailing zeros, ``E``, exponent. Equal numbers
      are equal keys: 1, 1.0 and 1.00 are ``1E0``, every zero is ``0E0``.
d     ``date``: ASCII ``YYYY-MM-DD``
t     ``datetime`` without time zone: ASCII ``YYYY-MM-DDTHH:MM:SS.ffffff``
z     ``datetime`` with time zone: the same in UTC. Equal instants are equal keys.
m     a saved model instance: the values ``app_label.modelname`` and pk (a tuple for a
      composite pk), of the concrete model, one after the other
(     ``tuple``: the tuple's values, one after the other
====  ==================================================================================

An ``Enum`` member is encoded as the member's value, because Django returns that value once a row
is reloaded: ``Status.PAID`` and ``"paid"`` must not be two keys.

The number is BLAKE2b with an 8-byte digest over the value of the namespace (a ``str``) followed
by the value of the key (a ``tuple``), read as a signed big-endian integer.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, TypeAlias, TypeGuard
from uuid import UUID


class SavedInstance(Protocol):
    """A Django model instance, recognised by its attributes, so that Django is not imported."""

    _meta: ClassVar[Any]
    pk: Any

    @property
    def _state(self) -> Any: ...


KeyPart: TypeAlias = (
    str | int | bool | bytes | UUID | Decimal | date | Enum | SavedInstance | tuple["KeyPart", ...]
)
Key: TypeAlias = tuple[KeyPart, ...]

_SHOWN = (float, complex, Decimal, date, type(None))

_HEAD = 9
"""The number of bytes of a value's tag and length."""

MAX_DEPTH = 32
"""How deep tuples may be nested in a key."""


def encode(key: tuple[Any, ...]) -> bytes:
    """Encode a key as bytes.

    Guaranteed: different keys have different bytes, and a key has the same bytes in every process
    and every release.

    Raises:
        ValueError: the key is empty, tuples are nested more than ``MAX_DEPTH`` deep, or a part has
            no value that can be locked (an unsaved instance, NaN).
        TypeError: a part's type can't be in a key.
    """
    if not key:
        raise ValueError("A lock needs a key: at least one part, as in ('inventory', sku).")
    values: list[bytes] = []
    for place, part in enumerate(key, 1):
        if type(part) is str:  # nearly always, so without a call
            text = part.encode("utf-8", "surrogatepass")
            values += (b"s", len(text).to_bytes(8, "big"), text)
        else:
            values.append(_part(part, key, (place,)))
    return _value(b"(", b"".join(values))


def key_id(encoded: bytes, namespace: str = "") -> int:
    """Hash an encoded key to the signed 64-bit number that PostgreSQL locks."""
    salted = _salt(namespace) + encoded
    return int.from_bytes(blake2b(salted, digest_size=8).digest(), "big", signed=True)


@lru_cache(maxsize=1024)  # a namespace for each tenant
def _salt(namespace: str) -> bytes:
    return _value(b"s", namespace.encode("utf-8", "surrogatepass"))


def numbered(key: tuple[Any, ...], namespace: str) -> tuple[bytes, int]:
    """Return the key as :func:`encode` writes it, and its :func:`key_id` in the namespace."""
    data = encode(key)
    return data, key_id(data, namespace)


def decode(encoded: bytes) -> Key:
    """Return the parts of an encoded key; equal keys have equal parts.

    Decimals, dates and times are returned as the text of their payload, an instance as a tuple of
    its label and pk.
    """
    return _read(encoded[_HEAD:])


def to_pg_locks(number: int) -> tuple[int, int]:
    """Split a lock's number into ``classid`` and ``objid`` as ``pg_locks`` shows them, unsigned."""
    unsigned = number & 0xFFFF_FFFF_FFFF_FFFF
    return unsigned >> 32, unsigned & 0xFFFF_FFFF


def from_pg_locks(classid: int, objid: int) -> int:
    """Return the signed number of a lock from its ``classid`` and ``objid`` in ``pg_locks``."""
    unsigned = classid << 32 | objid
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def _value(tag: bytes, payload: bytes) -> bytes:
    return tag + len(payload).to_bytes(8, "big") + payload


def _read(values: bytes) -> Key:
    parts = []
    while values:
        end = _HEAD + int.from_bytes(values[1:_HEAD], "big")
        parts.append(_READERS[values[:1]](values[_HEAD:end]))
        values = values[end:]
    return tuple(parts)


def _part(part: Any, key: Key, place: tuple[int, ...]) -> bytes:
    if isinstance(part, Enum):
        return _part(part.value, key, place)
    if isinstance(part, str):
        return _value(b"s", plain_str(part).encode("utf-8", "surrogatepass"))
    for kind, write in _WRITERS:
        if isinstance(part, kind):
            try:
                return write(part)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{_where(part, key, place)} cannot be locked: {error}.") from None
    if isinstance(part, tuple):
        if len(place) == MAX_DEPTH:
            raise ValueError(f"A key's tuples may be nested {MAX_DEPTH} deep at the most.")
        inner = (_part(item, key, (*place, index)) for index, item in enumerate(part, 1))
        return _value(b"(", b"".join(inner))
    if is_instance(part):
        label, pk = instance_key(part, _where(part, key, place))
        return _value(b"m", _value(b"s", label.encode()) + _part(pk, key, place))
    hint = (
        " Round it, or lock its Decimal or str."
        if isinstance(part, float)
        else " A callable is for the decorator form only."
        if callable(part)
        else ""
    )
    raise TypeError(
        f"{_where(part, key, place)} cannot be part of a lock's key: a key is made of str, int, "
        f"bool, bytes, UUID, Decimal, date, datetime, Enum, saved model instances and tuples of "
        f"these.{hint}"
    )


def is_instance(part: object) -> bool:
    """Return whether an object looks like a Django model instance (a class has no ``_state``)."""
    return hasattr(part, "_meta") and hasattr(part, "_state")


def is_argument(part: object) -> TypeGuard[Callable[..., "KeyPart"]]:
    """Return whether a part of a key is called with the decorated function's arguments."""
    return callable(part) and not isinstance(part, type | Enum) and not is_instance(part)


def instance_key(instance: SavedInstance, where: str = "The instance") -> tuple[str, Any]:
    """Return the concrete model's label, and the pk as the database returns it.

    Raises:
        ValueError: the instance is not saved, or its pk can't be one of that model.
    """
    if instance._state.adding or instance.pk is None:  # noqa: SLF001 - Django's documented API
        raise ValueError(f"{where} is not saved, so it has no row to lock. Save it first.")
    meta = instance._meta.concrete_model._meta  # noqa: SLF001
    # to_python: an instance saved with pk="5" keeps the str until it is reloaded as 5
    pk = tuple(field.to_python(getattr(instance, field.attname)) for field in meta.pk_fields)
    return meta.label_lower, pk[0] if len(pk) == 1 else pk


def _where(part: object, key: Key, place: tuple[int, ...]) -> str:
    number = ".".join(map(str, place))
    # Show only values of these types: any other repr may be long, private, or run a query.
    shown = repr(part) if isinstance(part, _SHOWN) else f"an object of type {type(part).__name__}"
    return f"Part {number} of {len(key)} in the key, {shown},"


def plain_str(value: str) -> str:
    """Return the text of a str or a lazy object; ignore what a subclass of str overrides."""
    return str.__str__(value) if issubclass(type(value), str) else str(value)


def plain_int(value: int) -> int:
    """Return the number of an int or a lazy object; ignore what a subclass of int overrides."""
    return int.__pos__(value) if issubclass(type(value), int) else value.__int__()


def _int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _decimal(value: Decimal) -> bytes:
    if not value.is_finite():
        raise ValueError("not a finite number")
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return b"0E0"
    power = int(exponent) + len(text) - len(stripped)
    return f"{'-' * sign}{stripped}E{power}".encode()


def _datetime(value: datetime) -> bytes:
    if value.utcoffset() is None:
        return _value(b"t", _iso(value))
    return _value(b"z", _iso(value.astimezone(UTC)))


def _iso(value: datetime) -> bytes:
    # not value.isoformat(): a subclass may override it
    return datetime.isoformat(value.replace(tzinfo=None), timespec="microseconds").encode()


# The order matters: a bool is also an int, and a datetime is also a date.
_WRITERS: tuple[tuple[type, Callable[[Any], bytes]], ...] = (
    (bool, lambda part: _value(b"b", bytes([part]))),
    (int, lambda part: _value(b"i", _int(plain_int(part)))),
    (bytes, lambda part: _value(b"y", part)),
    (UUID, lambda part: _value(b"u", part.bytes)),
    (Decimal, lambda part: _value(b"n", _decimal(part))),
    (datetime, _datetime),
    (date, lambda part: _value(b"d", f"{part.year:04}-{part.month:02}-{part.day:02}".encode())),
)

_READERS: dict[bytes, Callable[[bytes], Any]] = {
    b"s": lambda payload: payload.decode("utf-8", "surrogatepass"),
    b"i": lambda payload: int.from_bytes(payload, "big", signed=True),
    b"b": lambda payload: payload == b"\1",
    b"y": bytes,
    b"u": lambda payload: UUID(bytes=payload),
    **dict.fromkeys((b"n", b"d", b"t", b"z"), bytes.decode),
    **dict.fromkeys((b"m", b"("), _read),
}
