"""What an instance's row was when it was last read or written: the original of a conflict.

Reading keeps the names and values that Django had in its hands anyway, and builds nothing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.models import Model


def original(instance: "Model") -> dict[str, Any]:
    """Return the values last read or written, by attribute name; without those not known."""
    kept = instance.__dict__.get("_version_origin", {})
    return kept if isinstance(kept, dict) else dict(zip(*kept, strict=True))


def written(instance: "Model", values: Iterable[tuple[Any, Any]]) -> None:
    """Remember (field, value) pairs that have reached the row."""
    found = original(instance)
    for field, value in values:
        if hasattr(value, "resolve_expression"):
            found.pop(field.attname, None)  # only the database knows what became of it
        else:
            found[field.attname] = value
    instance.__dict__["_version_origin"] = found


def snapshot(instance: "Model", fields: Iterable[Any]) -> None:
    """Remember what the instance carries in these fields, which is what its row has."""
    state = instance.__dict__
    written(instance, [(field, state[field.attname]) for field in fields if field.attname in state])
