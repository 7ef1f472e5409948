"""From ``("inventory", sku)`` to the signed 64-bit number that PostgreSQL locks. Pure, no Django.

The encoding never changes: two releases run side by side during a deploy and must agree.

A *value* is written as one tag byte, the payload's length as 8 bytes big-endian, and the payload:

====  ==================================================================================
tag   payload
====  ==================================================================================
s     ``str``: UTF-8; a lone surrogate as its three bytes (Python's ``surrogatepass``).
      No Unicode normalisation: "é" in one and in two code points are two keys.
i     ``int``: two's complement, big-endian, ``bit_length() // 8 + 1`` bytes
b     ``bool``: one byte, 0 or 1
y     ``bytes``: as they are
u     ``UUID``: its 16 bytes
n     ``Decimal``: ASCII, sign, digits without trailing zeros, ``E``, exponent. Equal numbers
      are equal keys: 1, 1.0 and 1.00 are ``1E0``, every zero is ``0E0``.
d     ``date``: ASCII ``YYYY-MM-DD``
t     ``datetime`` without time zone: ASCII ``YYYY-MM-DDTHH:MM:SS.ffffff``
z     ``datetime`` with time zone: the same in UTC. Equal instants are equal keys.
m     a saved model instance: the values ``app_label.modelname`` and pk (a tuple for a
      composite one), of the concrete model, one after the other
(     ``tuple``: its values, one after the other
====  ==================================================================================

An ``Enum`` member is its value, because that is what Django hands back once a row was reloaded:
``Status.PAID`` and ``"paid"`` must not be two keys.

The number is BLAKE2b with an 8-byte digest over the value of the namespace (a ``str``) followed
by the value of the key (a ``tuple``), read as a signed big-endian integer.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, TypeAlias, TypeGuard
from uuid import UUID


class SavedInstance(Protocol):
    """What a Django model instance has; asked for by shape, so that Django is not imported."""

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
"""Bytes of tag and length."""

MAX_DEPTH = 32
"""How deep tuples may be nested in a key."""


def encode(key: tuple[Any, ...]) -> bytes:
    """Write the key as bytes: injective, the same in every process and release.

    Raises:
        ValueError: the key is empty, or a part has no value that could be locked (an unsaved
            instance, NaN).
        TypeError: a part is of a type that no key can have.
    """
    if not key:
        raise ValueError("A lock needs a key: at least one part, as in ('inventory', sku).")
    return _value(b"(", b"".join([_part(part, key, (place,)) for place, part in enumerate(key, 1)]))


def key_id(encoded: bytes, namespace: str = "") -> int:
    """Hash an encoded key to the signed 64-bit number that PostgreSQL locks."""
    salted = _value(b"s", namespace.encode("utf-8", "surrogatepass")) + encoded
    return int.from_bytes(blake2b(salted, digest_size=8).digest(), "big", signed=True)


def numbered(key: tuple[Any, ...], namespace: str) -> tuple[bytes, int]:
    """Return the key as :func:`encode` writes it, and its :func:`key_id` in the namespace."""
    data = encode(key)
    return data, key_id(data, namespace)


def decode(encoded: bytes) -> Key:
    """Return the parts of an encoded key, the same for all keys that are equal.

    Numbers, dates and times as the text that stands there; an instance as a tuple of label and pk.
    """
    return _read(encoded[_HEAD:])


def to_pg_locks(number: int) -> tuple[int, int]:
    """Split a lock's number into ``classid`` and ``objid`` as ``pg_locks`` shows them, unsigned."""
    unsigned = number & 0xFFFF_FFFF_FFFF_FFFF
    return unsigned >> 32, unsigned & 0xFFFF_FFFF


def from_pg_locks(classid: int, objid: int) -> int:
    """Put the two halves together again: the lock's signed number."""
    unsigned = classid << 32 | objid
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def _value(tag: bytes, payload: bytes) -> bytes:
    return tag + len(payload).to_bytes(8, "big") + payload


def _read(values: bytes) -> Key:
    found = []
    while values:
        end = _HEAD + int.from_bytes(values[1:_HEAD], "big")
        found.append(_READERS[values[:1]](values[_HEAD:end]))
        values = values[end:]
    return tuple(found)


def _part(part: Any, key: Key, place: tuple[int, ...]) -> bytes:
    if type(part) is str:  # nearly always
        return _value(b"s", part.encode("utf-8", "surrogatepass"))
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
    """Whether this looks like a Django model instance (a model class has no ``_state``)."""
    return hasattr(part, "_meta") and hasattr(part, "_state")


def is_argument(part: object) -> TypeGuard[Callable[..., "KeyPart"]]:
    """Whether this part of a key is to be called with the decorated function's arguments."""
    return callable(part) and not isinstance(part, type | Enum) and not is_instance(part)


def instance_key(instance: SavedInstance, where: str = "The instance") -> tuple[str, Any]:
    """Return the concrete model's label and the pk as the database will hand it back."""
    if instance._state.adding or instance.pk is None:  # noqa: SLF001 - Django's documented API
        raise ValueError(f"{where} is not saved, so it has no row to lock. Save it first.")
    meta = instance._meta.concrete_model._meta  # noqa: SLF001
    # to_python: an instance saved with pk="5" keeps the str until it is reloaded as 5
    pk = tuple(field.to_python(getattr(instance, field.attname)) for field in meta.pk_fields)
    return meta.label_lower, pk[0] if len(pk) == 1 else pk


def _where(part: object, key: Key, place: tuple[int, ...]) -> str:
    number = ".".join(map(str, place))
    # Only these: the repr of anything else may be long, private, or run a query.
    shown = repr(part) if isinstance(part, _SHOWN) else f"an object of type {type(part).__name__}"
    return f"Part {number} of {len(key)} in the key, {shown},"


def plain_str(value: str) -> str:
    """Return the text of a str, of a subclass whatever it overrides, or of a lazy object."""
    return str.__str__(value) if issubclass(type(value), str) else str(value)


def plain_int(value: int) -> int:
    """Return the number of an int, of a subclass whatever it overrides, or of a lazy object."""
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
    # not value.isoformat(): subclasses write it their own way
    return datetime.isoformat(value.replace(tzinfo=None), timespec="microseconds").encode()


# In this order: a bool is an int, a datetime is a date.
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
