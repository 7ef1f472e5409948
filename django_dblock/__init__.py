"""Locks, leases, optimistic writes and idempotency for Django, on PostgreSQL alone.

What is here so far, and what it guarantees:

``with advisory_lock("inventory", sku):``
    One transaction at a time in the block, per key, in the whole database. It ends at commit or
    rollback, also when the process or its machine dies. See :mod:`django_dblock.advisory`.

Every public name can be imported from here; it is loaded at first use, so that importing the
package touches neither the settings nor the app registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_dblock.advisory import HeldLock as HeldLock
    from django_dblock.advisory import HeldLocks as HeldLocks
    from django_dblock.advisory import advisory_lock as advisory_lock
    from django_dblock.advisory import advisory_locks as advisory_locks
    from django_dblock.advisory import try_advisory_lock as try_advisory_lock
    from django_dblock.exceptions import DblockError as DblockError
    from django_dblock.exceptions import LockDeadlock as LockDeadlock
    from django_dblock.exceptions import LockError as LockError
    from django_dblock.exceptions import LockTableFull as LockTableFull
    from django_dblock.exceptions import LockTimeout as LockTimeout
    from django_dblock.exceptions import StandbyDatabase as StandbyDatabase
    from django_dblock.exceptions import UnsafeIsolation as UnsafeIsolation
    from django_dblock.exceptions import UnsupportedDatabase as UnsupportedDatabase

__version__ = "0.1.0"

_HOME = {
    "HeldLock": "advisory",
    "HeldLocks": "advisory",
    "advisory_lock": "advisory",
    "advisory_locks": "advisory",
    "try_advisory_lock": "advisory",
    "DblockError": "exceptions",
    "LockDeadlock": "exceptions",
    "LockError": "exceptions",
    "LockTableFull": "exceptions",
    "LockTimeout": "exceptions",
    "StandbyDatabase": "exceptions",
    "UnsafeIsolation": "exceptions",
    "UnsupportedDatabase": "exceptions",
}

__all__ = [  # noqa: PLE0604 - the names are strings, read from the table above
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
