"""The fate of a version that was written inside a transaction.

The version in memory is valid only if that transaction commits. After a rollback the version is
ahead of the row, and another writer may reach the same number. A save that compares with that
number would overwrite the other writer's write. So an instance that was written in a transaction
remembers that transaction, and the version that the instance had before.

Django keeps a list of ``on_commit`` hooks. Django removes the hooks of a rolled-back savepoint or
transaction from the list, and empties the list when the connection is lost. So an entry of this
module in that list shows the fate: the entry is still in the list, was run, or was removed. The
entry is the first in the list, so that another hook that raises can't keep it from being run.

An instance that was *read* in a transaction can have a version that the same transaction wrote, by
another instance or by ``QuerySet.update()``. So each thread remembers which rows its open
transactions have written, and an instance that is read from such a row is treated as written there.

Django's list knows only the savepoints of ``atomic()``. If a savepoint is rolled back by hand, and
in manual transactions, the only sign is a version in memory that is above the row's version.
"""

import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from django.db import connections

from django_dblock.versioning import loaded_state

Connection = Any
"""Django's connection wrapper; the stubs lack the attributes that are used here."""

Instance = Any
"""An instance of a VersionedModel; this module can't import that class."""

KEPT: Final = ("_version_origin", "_version_alone", "_version_epoch")
"""What an instance remembers beside its version, and gets back with it."""

DEEPEST: Final = 20
"""Nested savepoints of one transaction whose earlier versions are remembered."""


class Fate:
    """One transaction, or one savepoint of it, as far as it has come."""

    committed = False
    testcase_block: str | None = None
    savepoints: frozenset[str | None] = frozenset()

    def __init__(self, alias: str, connection: Connection = None) -> None:
        self.alias = alias
        self._connection = None if connection is None else weakref.ref(connection)

    def is_of(self, connection: Connection) -> bool:
        """Return whether its transaction runs on this connection, and not on another thread's."""
        return self._connection is not None and self._connection() is connection

    def __call__(self) -> None:
        """Run by Django after COMMIT."""
        self.committed = True

    def pending(self, connection: Connection) -> bool:
        """Return whether its transaction is known to be open on this connection still."""
        if self.testcase_block is not None:
            return self.testcase_block in connection.savepoint_ids
        # In manual transaction management a COMMIT leaves Django's list as it is.
        automatic = connection.in_atomic_block and connection.commit_on_exit
        return automatic and self._is_listed(connection)

    def _is_listed(self, connection: Connection) -> bool:
        return any(hook is self for _, hook, _ in connection.run_on_commit)

    def rolled_back(self, connection: Connection) -> bool:
        """Return whether the write never came to be; also True where COMMIT got no response."""
        if self.committed or self.testcase_block is not None:
            return False
        return not self._is_listed(connection)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Stay the same in this process; another process can't know, and trusts the number."""
        while len(_pickled) >= _MOST_PICKLED:
            _pickled.pop(next(iter(_pickled)), None)
        _pickled[id(self)] = self
        return _again, (_PROCESS, os.getpid(), id(self), self.alias)


_PROCESS = os.urandom(8)
_MOST_PICKLED = 10_000
_pickled: dict[int, Fate] = {}
"""Fates to keep, so that instances from a cache still find theirs; the oldest are dropped first."""


def _again(process: bytes, pid: int, number: int, alias: str) -> Fate:
    if (process, pid) == (_PROCESS, os.getpid()) and number in _pickled:
        return _pickled[number]
    fate = Fate(alias)
    fate.committed = True
    return fate


def current(connection: Connection) -> Fate | None:
    """Return the fate that what is written now shares; None where it is committed at once.

    Also None in manual transaction management, where Django keeps no such list.
    """
    if not connection.in_atomic_block:
        return None
    if any(block._from_testcase for block in connection.atomic_blocks):
        return _in_testcase(connection)
    savepoints = set(connection.savepoint_ids)
    hooks = connection.run_on_commit
    if hooks and isinstance(hooks[0][1], Fate) and hooks[0][0] == savepoints:
        return hooks[0][1]  # one entry serves all writes of a block
    fate = Fate(connection.alias, connection)
    fate.savepoints = frozenset(savepoints)
    hooks.insert(0, (savepoints, fate, False))
    return fate


def _in_testcase(connection: Connection) -> Fate | None:
    """Take the test's own outermost block for its transaction; a rollback goes unnoticed there.

    Nothing is ever committed in a TestCase, and tests count the entries of Django's list
    (``captureOnCommitCallbacks``), so ours must not be among them.
    """
    wrapping = sum(block._from_testcase for block in connection.atomic_blocks)
    own = connection.savepoint_ids[wrapping - 1 :]  # the outermost of all blocks has no savepoint
    if not own or own[0] is None:
        return None
    fate = Fate(connection.alias, connection)
    fate.testcase_block = own[0]
    return fate


# The rows that open transactions have written.


MOST: Final = 1000
"""Rows of one table that are remembered; after more, all its rows count as written."""


class Uncommitted:
    """The rows that the open transaction of one connection has written.

    Attributes:
        first: the fate of the first write. If the first write was rolled back, so were all others
            until then.
        latest: the fate of the latest write.
        tables: by the model of the table with the version, the primary keys with the fates of their
            writes, the outermost first; None stands for all rows.
    """

    def __init__(self, fate: Fate) -> None:
        self.first = self.latest = fate
        self.tables: dict[Any, dict[Any, list[Fate]]] = {}


class _Local(threading.local):
    """The uncommitted rows of this thread, by alias. Django's connections belong to a thread."""

    def __init__(self) -> None:
        self.by_alias: dict[str, Uncommitted] = {}


uncommitted = _Local()


def row_key(model: Any, value: Any) -> Any:
    """Return a primary key as a read row would have it; a composite key as a tuple."""
    fields = model._meta.pk_fields
    if len(fields) == 1:
        return loaded_state.cleaned(fields[0], value)
    return tuple(map(loaded_state.cleaned, fields, value))


def wrote(fate: Fate, connection: Connection, table: Any, keys: Iterable[Any] | None) -> None:
    """Remember rows that the open transaction has written. In a TestCase nothing is remembered.

    Args:
        fate: the transaction or savepoint.
        connection: the connection that it is open on.
        table: the model of the table with the version.
        keys: the primary keys, as :func:`row_key` returns them; None if they are not known.
    """
    if fate.testcase_block is not None:  # its rollback goes unnoticed anyway
        return
    known = uncommitted.by_alias.get(fate.alias)
    if known is None or not (fate is known.latest or known.first.pending(connection)):
        known = uncommitted.by_alias[fate.alias] = Uncommitted(fate)
    known.latest = fate
    rows = known.tables.setdefault(table, {})
    for key in (None,) if keys is None else keys:
        kept = key if key in rows or len(rows) < MOST else None
        _add(rows.setdefault(kept, []), fate, connection)


def _add(fates: list[Fate], fate: Fate, connection: Connection) -> None:
    """Add the fate of the latest write, and drop fates that can no longer differ from others.

    A fate ends with the innermost of its savepoints that is still open. Of two fates with the same
    one the later is enough, so there are as many fates as nested savepoints at most.
    """
    still_open = fate.savepoints
    while fates:
        last = fates[-1]
        if last.savepoints >= still_open or not last.pending(connection):
            fates.pop()
        elif len(fates) > 1 and last.savepoints & still_open == fates[-2].savepoints & still_open:
            del fates[-2]
        else:
            break
    fates.append(fate)


def was_read(instance: Instance, alias: str, last: "Written | None" = None) -> None:
    """Treat an instance as written, if the open transaction wrote the row that was just read.

    Call this function only if ``uncommitted.by_alias`` has the alias.

    Args:
        instance: the instance.
        alias: the alias that the row was read from.
        last: the latest write of the instance itself before it was read again, if there was one.
    """
    connection, known = connections[alias], uncommitted.by_alias[alias]
    if known.first.committed or not connection.in_atomic_block:
        del uncommitted.by_alias[alias]
        return
    version = instance.__dict__.get(instance._version_field.attname)
    table = instance._version_field.model
    if (rows := known.tables.get(table)) is None or version is None:
        return
    fates = [*rows.get(None, ()), *rows.get(row_key(table, instance._version_pk), ())]
    pending = [fate for fate in fates if fate.pending(connection)]
    if pending:
        still_open = frozenset(connection.savepoint_ids)
        fate = max(reversed(pending), key=lambda fate: len(fate.savepoints & still_open))
        before = last.before if last is not None and last.fate is fate else None
        only_read = last is None or last.only_read or not last.fate.pending(connection)
        instance.__dict__["_version_written"] = Written(fate, version, before, only_read=only_read)


# The version that an instance had before, which a rollback restores.


@dataclass(slots=True)
class Written:
    """The transaction in which the version of an instance was written.

    Attributes:
        fate: what becomes of that transaction.
        version: the version that was written.
        before: what the instance carried when the transaction had not written it yet; None where
            it carried no version, as before an INSERT.
        taken: attributes that took a value of the row over, with the values before and after.
        only_read: the instance was read, and the transaction may not have written its row.
    """

    fate: Fate
    version: int
    before: "Before | None" = None
    taken: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    only_read: bool = False


@dataclass(slots=True)
class Before:
    """A version, and all that goes with it."""

    version: int
    written: Written | None
    kept: dict[str, Any]
    depth: int = 1


def written(
    instance: Instance,
    fate: Fate,
    version: int,
    taken: dict[str, tuple[Any, Any]],
    *,
    unread: bool,
) -> None:
    """Remember that a version was written in a transaction, before the instance carries it.

    Args:
        instance: what was written, with the version and the original that it had.
        fate: what becomes of the transaction.
        version: the version that was written.
        taken: attributes that took the row's value over, with the values before and after.
        unread: the instance was made by hand: what it carries is no row's version.
    """
    state = instance.__dict__
    last: Written | None = state.get("_version_written")
    if last is not None and last.fate is fate:
        before, taken = last.before, {**last.taken, **taken}
    else:
        before = None if unread or instance._state.adding else _carried(instance, last)
    state["_version_written"] = Written(fate, version, before, taken)


def _carried(instance: Instance, last: Written | None) -> Before | None:
    state = instance.__dict__
    version = state.get(instance._version_field.attname)
    if last is not None and last.fate.committed:
        last = None
    depth = 1 if last is None or last.before is None else last.before.depth + 1
    if not isinstance(version, int) or depth > DEEPEST:
        return None
    return Before(version, last, {name: state.get(name) for name in KEPT}, depth)


def restore(instance: Instance, earlier: Before) -> None:
    """Let an instance carry again what it did before a transaction that was rolled back."""
    state = instance.__dict__
    for name, (old, taken) in state["_version_written"].taken.items():
        if name in state and not loaded_state.differ(state[name], taken):
            loaded_state.assign(instance, name, old)
    state[instance._version_field.attname] = earlier.version
    for name, value in {**earlier.kept, "_version_written": earlier.written}.items():
        if value is None:
            state.pop(name, None)
        else:
            state[name] = value


def is_undone(instance: Instance) -> bool:
    """Return whether the last write of an instance was rolled back, and was not forgotten yet."""
    last: Written | None = instance.__dict__.get("_version_written")
    return last is not None and last.fate.rolled_back(connections[last.fate.alias])


def forget_rolled_back(instance: Instance) -> bool:
    """Restore what an instance carried before its rolled-back writes; return False if unknown.

    It is unknown after an INSERT. The transaction of another thread may still be open, so nothing
    is restored after that either. Sends nothing.
    """
    state = instance.__dict__
    while written := state.get("_version_written"):
        if written.version != state.get(instance._version_field.attname):
            break  # set by hand since
        if written.fate.committed:
            del state["_version_written"]
            break
        connection = connections[written.fate.alias]
        if not written.fate.rolled_back(connection):
            break
        if written.before is None or not written.fate.is_of(connection):
            return False
        restore(instance, written.before)
    return True
