"""The advisory locks in ``dblock list``."""

from typing import Any

from django_dblock.cli.key_parts import parse_key
from django_dblock.cli.table import printable, seconds
from django_dblock.inspect import AdvisoryLock, advisory_locks

ADVISORY_COLUMNS = ("lock", "mode", "state", "pid", "for", "transaction", "user", "client", "query")


def find_advisory_locks(options: dict[str, Any]) -> list[AdvisoryLock]:
    """Return those that the filters leave."""
    locks = advisory_locks(options["using"])
    if options["key"]:
        _, wanted = parse_key(options["key"], options["using"])
        locks = [lock for lock in locks if lock.key_id == wanted]
    if options["blocked"]:
        waited_for = {_place(lock) for lock in locks if not lock.granted}
        locks = [lock for lock in locks if _place(lock) in waited_for]
    return locks


def _place(lock: AdvisoryLock) -> tuple[int, int, bool]:
    return lock.classid, lock.objid, lock.key_id is None


def advisory_row(lock: AdvisoryLock) -> tuple[str, ...]:
    """Put one into words."""
    if lock.granted:
        state = "held"
    else:
        state = f"waits for {', '.join(map(str, lock.blocked_by)) or 'its turn'}"
    number = f"({lock.classid}, {lock.objid})" if lock.key_id is None else str(lock.key_id)
    return (
        lock.name or number,
        "shared" if lock.shared else "exclusive",
        state,
        "prepared" if lock.pid is None else str(lock.pid),
        seconds(lock.waiting),
        "hidden" if lock.hidden else seconds(lock.transaction_age),
        printable(lock.user or ""),
        "hidden" if lock.hidden else lock.client or ("" if lock.pid is None else "local"),
        "hidden" if lock.hidden else printable(" ".join((lock.query or "").split())[:60]),
    )
