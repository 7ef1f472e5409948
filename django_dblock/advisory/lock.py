"""Locks that end with a transaction: PostgreSQL's advisory locks.

The protocol:

1. The key becomes a number (:mod:`django_dblock.keys`).
2. Outside a transaction, entering the block opens ``transaction.atomic``. Inside a transaction, the
   block joins that transaction.
3. One statement takes the lock. The statement refuses where a lock would protect nothing: on a
   standby, above READ COMMITTED, on an engine whose advisory locks are not PostgreSQL's. If the
   block opened the transaction, the statement travels with BEGIN in one message.
4. A first message tries the lock without waiting. Only if another transaction holds the key, a
   second message waits. In the block's own transaction, the wait is the first message if the key
   was not free the last time, or if the lock is shared. A waiter waits in the server's own queue,
   first come, first served, under its own ``lock_timeout``. In a transaction that the caller
   opened, it waits under a savepoint, so that a timeout does not undo the caller's work.
5. COMMIT or ROLLBACK frees the lock, and so does the death of the process, of its machine or of
   the connection. There is no release call to forget, and at no moment is the lock free while the
   changes are not yet visible.

This module keeps no list of the locks that are held. The server has that list, and frees the locks
that were taken under a savepoint when the savepoint is rolled back.
"""

import functools
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeAlias, TypeVar

from asgiref.sync import iscoroutinefunction
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, TransactionManagementError
from django.dispatch import Signal
from psycopg.pq import TransactionStatus

from django_dblock import signals
from django_dblock.advisory.acquire import Request, lock, name_holder, try_lock
from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds
from django_dblock.core.application_name import NamedKey, named, names
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import (
    alias_of,
    connection_for,
    in_transaction,
    interruption_of_commit,
    joins,
)
from django_dblock.core.decorators import (
    Guard,
    mark,
    refuse_unfinished,
    refuse_what_runs_later,
)
from django_dblock.exceptions import DblockError, LockDeadlock, LockTimeout
from django_dblock.keys import Key, KeyPart, is_argument

if TYPE_CHECKING:
    from django_dblock.core.simple_query import Rows

# Entering and leaving a block that holds locks.


Keys: TypeAlias = Iterable[Key | KeyPart]
P = ParamSpec("P")
R = TypeVar("R")
HeldT = TypeVar("HeldT")
Take: TypeAlias = Callable[[Request, float | None, bool, "list[Rows]"], tuple[HeldT, float]]
"""Takes the locks. The arguments are those of :func:`django_dblock.advisory.acquire.lock`: the
request, the timeout in seconds, whether the caller opened the transaction, and the list that
receives the holders. Returns what ``with … as`` binds, and the seconds waited."""

_NO_ASYNC = (
    "{what} can't hold an advisory lock: it ends with its transaction, and Django's transactions "
    "can't span an await. Move the locked part into a sync function and call it with "
    "asgiref.sync.sync_to_async."
)


@dataclass(slots=True)
class _Entry:
    """One entry into a block: the transaction that the block opened, if any, and its start."""

    request: Request
    atomic: Atomic | None
    since: float


class AdvisoryBlock(Generic[HeldT]):
    """A block that holds advisory locks until its transaction ends.

    The object is configuration only; each entry puts its own record on the connection, as Atomic
    does. So threads can share one block, and a block can be re-entered and called recursively.

    Args:
        keys: the keys, encoded and named; None if they depend on a decorated call's arguments.
        for_call: returns the block for one call of a decorated function, from its arguments; None
            if every call has the same keys.
        shared: whether the locks are shared; a tuple has 1 (shared) or 0 for each key.
        take: takes the locks; returns what ``with … as`` binds, and the seconds waited.
        timeout: seconds; ``...`` for the setting.
        using: the database alias.
    """

    def __init__(  # noqa: PLR0913 - its configuration
        self,
        keys: tuple[NamedKey, ...] | None,
        for_call: Callable[..., "AdvisoryBlock[HeldT]"] | None,
        shared: bool | tuple[int, ...],  # noqa: FBT001 - one for all keys, or one for each
        take: Take[HeldT],
        *,
        timeout: float | EllipsisType | None,
        using: str | None,
    ) -> None:
        if not (timeout is None or timeout is ... or is_seconds(timeout)):
            raise ValueError(
                f"timeout={timeout!r} is not a number of seconds from 0 (do not wait) to "
                f"{MAX_TIMEOUT:.0f}; None waits indefinitely."
            )
        self._keys = keys
        self._for_call = for_call
        self._shared = shared if isinstance(shared, bool) else False
        self._modes = () if isinstance(shared, bool) else shared
        self._take = take
        self._timeout = timeout
        self._using = using
        self._used = False

    _kind = "advisory"
    _names_holder = True

    # A block that is built but never entered locks nothing, although the code reads as if it did.
    # True until __init__ has finished: a block whose arguments were refused does not warn.
    _used = True

    def __del__(self) -> None:
        if not self._used and not sys.is_finalizing():
            warnings.warn(
                f"{type(self).__name__}({self._name()}) was never entered, so nothing was locked. "
                f"Use it in a with statement, or as a decorator.",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def _name(self) -> str:
        return "…" if self._keys is None else names(self._keys)

    def __enter__(self) -> HeldT:
        timeout = (
            conf.advisory_timeout if isinstance(self._timeout, EllipsisType) else self._timeout
        )
        self._used = True
        if self._keys is None:
            raise TypeError(
                f"A callable in the keys of {type(self).__name__} is for the decorator, which "
                f"calls it with the call's arguments. In a with statement, pass its value."
            )
        connection = connection_for(self._using)
        request = Request.of(
            self._keys, shared=self._shared, connection=connection, modes=self._modes
        )
        entries = _entries(connection)
        depth = len(entries)
        atomic = None
        if not joins(connection):
            atomic = transaction.atomic(using=connection.alias)
            atomic.__enter__()
        started = monotonic()
        holders: list[Rows] = []
        try:
            held, waited = self._take(request, timeout, atomic is None, holders)
            since = monotonic()
            entries.append(_Entry(request, atomic, since))
            self._send(signals.lock_acquired, request, waited=waited, took=since - started)
        except BaseException as error:  # __exit__ is not called if __enter__ raises
            del entries[depth:]
            if atomic is not None:
                atomic.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, LockTimeout):
                if self._names_holder:
                    name_holder(error, request, holders)
                self._send(signals.lock_timeout, request, waited=error.waited)
            elif isinstance(error, LockDeadlock):
                self._send(signals.lock_deadlock, request, waited=monotonic() - started)
            elif isinstance(error, DblockError):
                self._send(signals.lock_refused, request, error=error)
            raise
        return held

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # not connection_for(): a pipeline that was begun inside the block doesn't keep it open
        connection = connections[alias_of(self._using)]
        entry = _left(connection)
        if entry.atomic is None:
            return  # the caller's transaction ends the lock
        commits = kind is None and not connection.needs_rollback and not _is_aborted(connection)
        committed = None  # unknown: if COMMIT raises, it may have happened or not
        try:
            entry.atomic.__exit__(kind, error, traceback)
            committed = commits
        except BaseException as raised:
            if (interruption := interruption_of_commit(connection, raised)) is not None:
                raise interruption from None
            raise
        finally:
            held = monotonic() - entry.since
            self._send(signals.lock_released, entry.request, held=held, committed=committed)

    async def __aenter__(self) -> NoReturn:
        self._used = True
        raise TypeError(_NO_ASYNC.format(what="'async with'"))

    async def __aexit__(self, *_: object) -> None:
        """Return nothing; never called, because ``__aenter__`` raises."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that runs each call inside the block.

        Raises:
            TypeError: the function is async, a class, a generator function or another function
                whose body runs after the call. When called: the function returned something that
                runs later, such as a generator.
        """
        self._used = True
        decorator = type(self).__name__
        if iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            name = getattr(function, "__qualname__", repr(function))
            raise TypeError(_NO_ASYNC.format(what=f"the async function {name}"))
        refuse_what_runs_later(function, decorator)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            block = self if self._for_call is None else self._for_call(*args, **kwargs)
            with block:
                result = function(*args, **kwargs)
                refuse_unfinished(result, function, decorator)
            return result

        mark(locked, function, Guard(decorator, outside=False, using=self._using))
        return locked

    def _send(self, signal: Signal, request: Request, **more: object) -> None:
        if signal.receivers:  # don't build the arguments without a receiver
            signal.send_robust(
                type(self),
                kind=self._kind,
                shared=request.shared,
                **request.facts,
                **more,
            )


def _entries(connection: BaseDatabaseWrapper) -> list[_Entry]:
    entries: list[_Entry] = connection.__dict__.setdefault("_dblock_entries", [])
    return entries


def _left(connection: BaseDatabaseWrapper) -> _Entry:
    entries = _entries(connection)
    if not entries:
        raise TransactionManagementError(
            f"A block of advisory_lock() was left that was not entered on this connection to "
            f"{connection.alias!r}: it was entered in another thread, or before DBLOCK_DATABASE "
            f"was changed. The lock ends with the transaction in which it was taken."
        )
    return entries.pop()


def _is_aborted(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the server has aborted the transaction, so that COMMIT becomes ROLLBACK."""
    # That is so if the block swallowed a database error: Django's needs_rollback is not set then.
    # not driver.info, which makes an object for each look
    driver = connection.connection
    return driver is not None and driver.pgconn.transaction_status == TransactionStatus.INERROR


@dataclass(frozen=True, slots=True)
class HeldLock:
    """The lock that a block has taken: a record of that moment, which is not updated later.

    Attributes:
        key: the key's parts, as given.
        key_id: the signed 64-bit number that PostgreSQL locked.
        using: the database alias.
        shared: whether other transactions may share the lock.
        waited: seconds spent waiting; 0.0 if the lock was free.
    """

    key: Key
    key_id: int
    using: str
    shared: bool
    waited: float


@dataclass(frozen=True, slots=True)
class HeldLocks:
    """The locks that a block of ``advisory_locks`` has taken; a record, as :class:`HeldLock` is.

    Attributes:
        keys: the keys, in the order given.
        key_ids: the signed 64-bit numbers that PostgreSQL locked, in the same order.
        using: the database alias.
        shared: whether other transactions may share all of the locks.
        waited: seconds spent waiting for all locks together; 0.0 if all were free.
        shared_keys: the keys that other transactions may share.
    """

    keys: tuple[Key, ...]
    key_ids: tuple[int, ...]
    using: str
    shared: bool
    waited: float
    shared_keys: tuple[Key, ...] = ()


class advisory_lock(AdvisoryBlock[HeldLock]):  # noqa: N801 - context managers are lower-case nouns
    """Lock a key until the transaction ends; wait while another transaction holds the key.

    In autocommit, entering the block opens ``transaction.atomic``. Leaving the block commits or
    rolls back, and that ends the lock. **Inside an open transaction** (``ATOMIC_REQUESTS``, an
    outer ``atomic()``, ``TestCase``) the block joins that transaction: the lock ends with the
    *outer* transaction, and leaving the block sends nothing and frees nothing.

    Guaranteed, from entering the block until the lock ends: no other transaction in the same
    database holds the key (with ``shared=True``: no other transaction holds the key exclusively).
    Whatever earlier holders committed is visible to every statement in the block. The lock ends,
    too, when the process, its machine, or the connection dies, and when a savepoint under which the
    lock was taken is rolled back.

    Not guaranteed: anything about code that does not take the lock; anything about commits in
    another database, on the same server or elsewhere; that ``on_commit`` hooks run under the lock
    (they run after COMMIT, which ends the lock); that the lock ends with the block, inside an open
    transaction.

    As a decorator, a callable among the parts is called with the call's arguments::

        @advisory_lock("inventory", lambda request, sku: sku)
        def buy(request, sku): ...

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`.
        timeout: seconds to wait, ``DBLOCK_ADVISORY_TIMEOUT`` (10) by default; 0 does not wait;
            None waits as long as the server's ``lock_timeout`` allows.
        shared: hold the lock together with other shared holders, excluding exclusive holders.
        using: the database alias; ``DBLOCK_DATABASE``, else ``default``. It must be the alias of
            the rows that the lock protects.

    Raises:
        LockTimeout: another transaction held the key until the timeout. Nothing is locked, and the
            caller's transaction is usable.
        LockDeadlock: the server found a deadlock and ended the wait. Nothing is locked, and the
            caller's transaction is usable.
        LockTableFull: the server has no room for more locks.
        UnsafeIsolation: the transaction is above READ COMMITTED, and
            ``DBLOCK_ALLOW_SNAPSHOT_ISOLATION`` is not set.
        StandbyDatabase: the server is a standby, where a lock would protect nothing.
        UnsupportedDatabase: the alias is not PostgreSQL, or is an engine whose advisory locks are
            not PostgreSQL's.
        NotSupportedError: the connection is in psycopg's pipeline mode.
        TypeError: before any SQL: a part's type can't be in a key; or a ``with`` block has a
            callable in its key; or an ``async with`` block, or a decorated class, async function or
            generator function, which no lock can cover. At the end of the block: the decorated
            function returned something that runs later, such as a generator.
        ValueError: before any SQL: the key is empty, a part has no value that can be locked, or the
            timeout is not a number of seconds.
        TransactionManagementError: on leaving: the block was entered on another connection.

    Source: PostgreSQL manual, 13.3.5 "Advisory Locks".
    """

    def __init__(
        self,
        *key: KeyPart | Callable[..., KeyPart],
        timeout: float | EllipsisType | None = ...,
        shared: bool = False,
        using: str | None = None,
    ) -> None:
        # Encode the key here, so that a wrong part raises where the key is written.
        if any(map(callable, key)) and any(map(is_argument, key)):

            def for_call(*args: Any, **kwargs: Any) -> AdvisoryBlock[HeldLock]:
                parts = (part(*args, **kwargs) if is_argument(part) else part for part in key)
                return advisory_lock(*parts, timeout=timeout, shared=shared, using=using)

            named(tuple("" if is_argument(part) else part for part in key))
            super().__init__(None, for_call, shared, _take_one, timeout=timeout, using=using)
        else:
            super().__init__((named(key),), None, shared, _take_one, timeout=timeout, using=using)


def _take_one(
    request: Request,
    timeout: float | None,
    joined: bool,  # noqa: FBT001 - the signature of Take
    holders: "list[Rows]",
) -> tuple[HeldLock, float]:
    waited = lock(request, timeout=timeout, joined=joined, holders=holders)
    using = request.connection.alias
    held = HeldLock(request.keys[0].parts, request.ids[0], using, request.shared, waited)
    return held, waited


class advisory_locks(AdvisoryBlock[HeldLocks]):  # noqa: N801
    """Lock several keys until the transaction ends: all of them, or none.

    The guarantees are those of :class:`advisory_lock`, for all keys together, under one deadline
    and in one round trip. The locks are taken in the order of their numbers, in whatever order the
    keys are given, so two calls can't deadlock with each other. Two *nested* calls still can.

    As a decorator, ``keys`` may be a callable that gets the call's arguments and returns the keys.

    To lock some keys exclusively and share others, name both lists::

        with advisory_locks(exclusive=[("account", a)], shared=[("rates", day)]):

    A key that is in both lists is locked exclusively.

    Args:
        keys: the keys; each a tuple of parts, or a single part. ``DBLOCK_MAX_KEYS`` (1,000) at
            most, because every lock takes a place in a table that the whole cluster shares.
        exclusive: more keys that are locked exclusively.
        timeout: seconds to wait for all locks together, as in :class:`advisory_lock`; but 0 may
            wait for a millisecond, because the statement for several keys always waits.
        shared: True to share all of ``keys``; or a list of keys to share, beside the others.
        using: the database alias, as in :class:`advisory_lock`.

    Raises:
        LockTimeout: another transaction held one of the keys until the timeout. None of the keys is
            locked, and the caller's transaction is usable.
        LockDeadlock: the server found a deadlock and ended the wait. None of the keys is locked,
            and the caller's transaction is usable.
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase, NotSupportedError:
            none of the keys is locked; raised when :class:`advisory_lock` raises them.
        TypeError: before any SQL: the arguments are not lists of keys, ``shared=True`` is combined
            with ``exclusive=``, a part's type can't be in a key; or when :class:`advisory_lock`
            raises it.
        ValueError: before any SQL: there are no keys or too many, a key is empty, a part has no
            value that can be locked, or the timeout is not a number of seconds.
        TransactionManagementError: on leaving: the block was entered on another connection.
    """

    def __init__(
        self,
        keys: Keys | Callable[..., Keys] = (),
        *misplaced: object,
        exclusive: Keys = (),
        timeout: float | EllipsisType | None = ...,
        shared: bool | Keys = False,
        using: str | None = None,
    ) -> None:
        if misplaced:
            raise TypeError(
                "advisory_locks() takes one list of keys, not a key for each argument: "
                "advisory_locks([('account', 1), ('account', 2)]). For a single key of several "
                "parts there is advisory_lock()."
            )
        if callable(keys):
            if exclusive or not isinstance(shared, bool):
                raise TypeError(
                    "A callable for the keys of advisory_locks() returns all of them, for "
                    "shared=True or False; pass exclusive= and shared= as lists in a with block."
                )
            keys_of, all_shared = keys, shared

            def for_call(*args: Any, **kwargs: Any) -> AdvisoryBlock[HeldLocks]:
                return advisory_locks(
                    keys_of(*args, **kwargs), timeout=timeout, shared=all_shared, using=using
                )

            super().__init__(None, for_call, shared, _take_all, timeout=timeout, using=using)
            return
        exclusively = (*_several(keys), *_several(exclusive))
        if isinstance(shared, bool):
            if shared and exclusive:
                raise TypeError(
                    "shared=True shares all keys. Pass the keys to share as a list: "
                    "advisory_locks(exclusive=[…], shared=[…])."
                )
            together, mode = exclusively, shared
            modes: bool | tuple[int, ...] = mode
        else:
            sharing = _several(shared)
            together = (*exclusively, *sharing)
            modes = (*([0] * len(exclusively)), *([1] * len(sharing)))
        if not together:
            raise ValueError(
                "advisory_locks() needs at least one key; without keys it locks nothing."
            )
        if len(together) > conf.max_keys:
            raise ValueError(
                f"More than {conf.max_keys} keys in one advisory_locks() call (DBLOCK_MAX_KEYS): "
                f"each takes a place in the lock table that the whole cluster shares. Lock "
                f"something coarser, or raise the setting."
            )
        super().__init__(together, None, modes, _take_all, timeout=timeout, using=using)


def _take_all(
    request: Request,
    timeout: float | None,
    joined: bool,  # noqa: FBT001 - the signature of Take
    holders: "list[Rows]",
) -> tuple[HeldLocks, float]:
    waited = lock(request, timeout=timeout, joined=joined, holders=holders)
    keys = tuple(key.parts for key in request.keys)
    modes = request.modes or (int(request.shared),) * len(keys)
    exclusive = {number for number, mode in zip(request.ids, modes, strict=True) if not mode}
    shared_keys = tuple(
        key for key, number in zip(keys, request.ids, strict=True) if number not in exclusive
    )
    using = request.connection.alias
    return HeldLocks(keys, request.ids, using, all(modes), waited, shared_keys), waited


def try_advisory_lock(*key: KeyPart, shared: bool = False, using: str | None = None) -> bool:
    """Lock a key until the transaction ends if it is free; return whether it is locked.

    The function never waits. True guarantees what :class:`advisory_lock` guarantees inside an open
    transaction, also if this transaction had already locked the key. After False nothing was
    locked.

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`.
        shared: hold the lock together with other shared holders.
        using: the database alias, as in :class:`advisory_lock`.

    Raises:
        TransactionManagementError: no transaction is open, so the lock would end at once.
        LockTableFull: the server has no room for more locks. The transaction is aborted.
        UnsafeIsolation, StandbyDatabase, UnsupportedDatabase, NotSupportedError: nothing is locked;
            raised when :class:`advisory_lock` raises them.
        TypeError: before any SQL: a part's type can't be in a key.
        ValueError: before any SQL: the key is empty, or a part has no value that can be locked.
    """
    name = named(key)
    connection = connection_for(using)
    if not in_transaction(connection):
        raise TransactionManagementError(
            "try_advisory_lock() needs an open transaction, or the lock would end before it "
            "returns. Call it inside transaction.atomic(), or use 'with advisory_lock(…, "
            "timeout=0)', which opens one."
        )
    return try_lock(Request.of((name,), shared=shared, connection=connection))


def _several(keys: Keys) -> tuple[NamedKey, ...]:
    if isinstance(keys, str | bytes):
        raise TypeError(
            f"advisory_locks() takes a list of keys, not {type(keys).__name__}: "
            f"advisory_locks([('inventory', sku), …]). For a single key there is advisory_lock()."
        )
    if isinstance(keys, tuple) and not all(isinstance(key, tuple) for key in keys):
        raise TypeError(
            "advisory_locks() takes a list of keys, and a tuple of parts is a single key: "
            "advisory_locks([('account', 1), …]), or advisory_lock('account', 1) for one key."
        )
    most = conf.max_keys + 1  # more keys are refused; don't read an endless iterable to its end
    return tuple(
        named(key if isinstance(key, tuple) else (key,)) for key in itertools.islice(keys, most)
    )
