"""What an instance's row was when it was last read or written: the original of a conflict.

Reading keeps the names and values that Django had in its hands anyway, and saving the values that
it has written; they are put together only when somebody asks.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.models import Model

_LAYERS = 8
"""What was read, and so many saves after it, are kept before they are put together."""


def original(instance: "Model") -> dict[str, Any]:
    """Return the values last read or written, by attribute name; without those not known."""
    found: dict[str, Any] = {}
    for names, values in instance.__dict__.get("_version_origin", ()):
        if names is not None:
            found.update(zip(names, values, strict=True))
            continue
        for field, _, value in values:
            if hasattr(value, "resolve_expression"):
                found.pop(field.attname, None)  # only the database knows what became of it
            else:
                found[field.attname] = value
    return found


def read(instance: "Model", names: Sequence[str], values: Sequence[Any]) -> None:
    """Remember what the row was when it was read."""
    instance.__dict__["_version_origin"] = ((names, values),)


def written(instance: "Model", values: Sequence[tuple[Any, Any, Any]]) -> None:
    """Remember what Django has SET: (field, None, value)."""
    before = instance.__dict__.get("_version_origin", ())
    if len(before) > _LAYERS:
        known = original(instance)
        before = ((tuple(known), tuple(known.values())),)
    instance.__dict__["_version_origin"] = (*before, (None, values))


def snapshot(instance: "Model", fields: Iterable[Any]) -> None:
    """Remember what the instance carries in these fields, which is what its row has."""
    state = instance.__dict__
    loaded = [field for field in fields if field.attname in state]
    written(instance, [(field, None, state[field.attname]) for field in loaded])
