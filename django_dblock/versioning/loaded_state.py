"""What an instance's row was when it was last read or written: the original of a conflict.

Reading keeps the names and values that Django had in its hands anyway, and builds nothing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError

if TYPE_CHECKING:
    from django.db.models import Model


def original(instance: "Model") -> dict[str, Any]:
    """Return the values last read or written, by attribute name; without those not known."""
    kept = instance.__dict__.get("_version_origin", {})
    return kept if isinstance(kept, dict) else dict(zip(*kept, strict=True))


def same_row(instance: Any) -> bool:
    """Whether its primary key is still that of the row whose version it carries."""
    kept = instance.__dict__.get("_version_origin", {})
    for key in instance._version_field.model._meta.pk_fields:
        name = key.attname
        if isinstance(kept, dict):
            known = kept.get(name)
        else:
            names, values = kept
            known = values[names.index(name)] if name in names else None
        now = instance.__dict__.get(name)
        if known is not None and known != now and known != _cleaned(key, now):
            return False
    return True


def _cleaned(field: Any, value: Any) -> Any:
    try:
        return field.to_python(value)
    except ValidationError:
        return None


def written(instance: "Model", values: Iterable[tuple[Any, Any, Any]]) -> None:
    """Remember what has reached the row: (field, None, value), as Django has it in an UPDATE."""
    found = dict(original(instance))  # a copy of the instance may share it
    for field, _, value in values:
        if hasattr(value, "resolve_expression"):
            found.pop(field.attname, None)  # only the database knows what became of it
        else:
            found[field.attname] = value
    instance.__dict__["_version_origin"] = found


def snapshot(instance: "Model", fields: Iterable[Any]) -> None:
    """Remember what the instance carries in these fields, which is what its row has."""
    state = instance.__dict__
    known = [field for field in fields if field.attname in state]
    written(instance, [(field, None, state[field.attname]) for field in known])
