"""What became of a version that was written inside a transaction.

The number in memory is true only if that transaction commits. After a rollback it is ahead, and
somebody else may reach the same number: comparing with it would overwrite their write.

Django keeps the list of what to do at commit, takes out of it what a rolled-back savepoint or
transaction had put in, and empties it when the connection is lost. So an entry of ours in it
tells all three fates: still there, run, or neither. It stands first, so that another hook that
raises can't keep it from being run.

Django's list knows the savepoints of ``atomic()`` only. Where one is rolled back by hand, and in
manual transactions, a version in memory that is above the row's is the only sign.
"""

import os
from typing import Any, Self

Connection = Any
"""Django's wrapper; the types of what is read of it here stand in no stubs."""


class Fate:
    """One transaction, or one savepoint of it, as far as it has come."""

    committed = False
    testcase_block: str | None = None

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def __call__(self) -> None:
        """Run by Django after COMMIT."""
        self.committed = True

    def pending(self, connection: Connection) -> bool:
        """Whether its transaction is still open on this connection."""
        if self.testcase_block is not None:
            return self.testcase_block in connection.savepoint_ids
        return any(hook is self for _, hook, _ in connection.run_on_commit)

    def rolled_back(self, connection: Connection) -> bool:
        """Whether what was written never came to be; also where COMMIT's answer was lost."""
        if self.committed or self.testcase_block is not None:
            return False
        return not self.pending(connection)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Stay the same in this process; another one can't know, and trusts the number."""
        while len(_pickled) >= _MOST_PICKLED:
            _pickled.pop(next(iter(_pickled)), None)
        _pickled[id(self)] = self
        return _again, (_PROCESS, os.getpid(), id(self), self.alias)


_PROCESS = os.urandom(8)
_MOST_PICKLED = 10_000
_pickled: dict[int, Fate] = {}
"""Kept, so that what comes back from a cache still knows; the oldest go first."""


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
    fate = Fate(connection.alias)
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
    fate = Fate(connection.alias)
    fate.testcase_block = own[0]
    return fate
