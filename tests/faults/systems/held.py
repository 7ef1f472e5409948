"""What is held while a name is locked."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple


class Held(NamedTuple):
    """``transaction()`` opens the transaction in which one writes; ``token`` is 0 without one."""

    transaction: Callable[[], AbstractContextManager[object]]
    token: int = 0
    lock: Any = None
