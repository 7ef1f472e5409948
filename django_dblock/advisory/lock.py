"""Locks that live and die with a transaction: PostgreSQL's advisory locks.

The protocol, in one page:

1. The key becomes a number (:mod:`django_dblock.keys`).
2. Outside a transaction, entering the block opens ``transaction.atomic``; inside one, it joins.
3. One statement takes the lock, or refuses where a lock would protect nothing: on a standby, above
   READ COMMITTED, on an engine that only plays along. In a transaction of our own it travels with
   BEGIN, in one message, and waits if it has to.
4. Waiting is done in the server's own queue, first come, first served, under a ``lock_timeout`` of
   its own. In a transaction that was there before, the lock is first tried without waiting, and
   only if somebody else has it a second message waits, under a savepoint, so that a timeout does
   not take the caller's work with it.
5. COMMIT or ROLLBACK frees the lock, and so does the death of the process, of its machine or of
   the connection. There is no release call, so there is none to forget, and no moment at which the
   lock is free and the changes are not yet visible.

Nothing here remembers which locks are held: the server knows, and a savepoint that is rolled back
frees the locks taken under it.
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
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, TransactionManagementError
from django.dispatch import Signal
from psycopg.pq import TransactionStatus

from django_dblock import signals
from django_dblock.advisory.acquire import Request, lock, name_holder, try_lock
from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds
from django_dblock.core.application_name import NamedKey, named, names
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import connection_for, in_transaction, joins
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

# Entering and leaving a block that holds locks: whose transaction it is, and when it ends.


Keys: TypeAlias = Iterable[Key | KeyPart]
P = ParamSpec("P")
R = TypeVar("R")
HeldT = TypeVar("HeldT")
Take: TypeAlias = Callable[[Request, float | None, bool, "list[Rows]"], tuple[HeldT, float]]
"""From the request, the seconds to wait, whether the transaction is somebody else's, and the list
that gets the holders; see :func:`django_dblock.advisory.acquire.lock`."""

_NO_ASYNC = (
    "{what} can't hold an advisory lock: it ends with its transaction, and Django's transactions "
    "can't span an await. Move the locked part into a sync function and call it with "
    "asgiref.sync.sync_to_async."
)


@dataclass(slots=True)
class _Entry:
    """One entry into a block: the transaction it opened, if it did, and since when it holds."""

    request: Request
    atomic: Atomic | None
    since: float


class AdvisoryBlock(Generic[HeldT]):
    """A block that holds advisory locks until its transaction ends.

    It is configuration only; each entry leaves its own record on the connection, as Atomic does. So
    one object can be shared by threads, re-entered, and called recursively.

    Args:
        keys: the keys, encoded and named; None if only a decorated call knows them.
        for_call: returns the block for one call of a decorated function, from its arguments; None
            if every call has the same keys.
        shared: for each key whether the lock is shared, or one answer for all keys.
        take: takes the locks; returns what ``with … as`` binds, and the seconds waited.
        timeout: seconds; ``...`` for the setting.
        using: the database alias.
    """

    def __init__(  # noqa: PLR0913 - its configuration
        self,
        keys: tuple[NamedKey, ...] | None,
        for_call: Callable[..., "AdvisoryBlock[HeldT]"] | None,
        shared: bool | tuple[int, ...],  # noqa: FBT001 - a list of them, or one for all
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

    # A lock that is built and not entered protects nothing, and looks as if it did.
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
        except BaseException as error:  # nobody else will leave what was entered here
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
        connection = connection_for(self._using)
        entry = _left(connection)
        if entry.atomic is None:
            return  # the transaction that was joined ends the lock
        commits = kind is None and not connection.needs_rollback and not _is_aborted(connection)
        committed = None  # stays so where leaving raises: COMMIT may have happened, or not
        try:
            entry.atomic.__exit__(kind, error, traceback)
            committed = commits
        finally:
            held = monotonic() - entry.since
            self._send(signals.lock_released, entry.request, held=held, committed=committed)

    async def __aenter__(self) -> NoReturn:
        self._used = True
        raise TypeError(_NO_ASYNC.format(what="'async with'"))

    async def __aexit__(self, *_: object) -> None:
        """Never reached: entering raises."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Run each call of the function inside the block."""
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
        if signal.receivers:  # nothing is built where nobody listens
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
            f"{connection.alias!r}: in another thread, or before DBLOCK_DATABASE was changed. The "
            f"lock ends with the transaction it was taken in."
        )
    return entries.pop()


def _is_aborted(connection: BaseDatabaseWrapper) -> bool:
    """Whether an error was swallowed in the block: the server will answer COMMIT with ROLLBACK."""
    driver = connection.connection
    return driver is not None and driver.info.transaction_status == TransactionStatus.INERROR


@dataclass(frozen=True, slots=True)
class HeldLock:
    """What a block holds. A record of the moment of locking: it asks nobody whether it still holds.

    Attributes:
        key: the key's parts, as given.
        key_id: the signed 64-bit number that PostgreSQL locked.
        using: the database alias.
        shared: whether others may share the lock.
        waited: seconds spent waiting; 0.0 where nobody was before us.
    """

    key: Key
    key_id: int
    using: str
    shared: bool
    waited: float


@dataclass(frozen=True, slots=True)
class HeldLocks:
    """What a block of ``advisory_locks`` holds; see :class:`HeldLock`.

    Attributes:
        keys: the keys, in the order given.
        key_ids: their numbers, in the same order.
        using: the database alias.
        shared: whether others may share the locks: all of them.
        waited: seconds spent waiting for all of them together.
        shared_keys: the keys that others may share.
    """

    keys: tuple[Key, ...]
    key_ids: tuple[int, ...]
    using: str
    shared: bool
    waited: float
    shared_keys: tuple[Key, ...] = ()


class advisory_lock(AdvisoryBlock[HeldLock]):  # noqa: N801 - context managers are lower-case nouns
    """Lock a key until the transaction ends, waiting for it if somebody else has it.

    In autocommit, entering opens ``transaction.atomic``, and the lock ends with its commit or
    rollback, which leaving the block brings. **Inside an open transaction** (``ATOMIC_REQUESTS``,
    an outer ``atomic()``, ``TestCase``) it joins that one: the lock ends with the *outer*
    transaction, and leaving the block sends nothing and frees nothing.

    Guaranteed, from entering until that end: no other transaction in the same database holds the
    key (with ``shared=True``: none holds it exclusively), and whatever they committed before is
    visible to every statement in the block. It ends, too, when the process, its machine, or the
    connection dies, and when a savepoint under which it was taken is rolled back.

    Not guaranteed: anything about code that does not ask for the lock; anything about commits in
    another database, on the same server or elsewhere; that ``on_commit`` hooks run under it (they
    run after COMMIT, when it is gone); that it ends with the block, inside an open transaction.

    As a decorator, a callable among the parts is called with the call's arguments::

        @advisory_lock("inventory", lambda request, sku: sku)
        def buy(request, sku): ...

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`.
        timeout: seconds to wait, ``DBLOCK_ADVISORY_TIMEOUT`` (10) by default; 0 does not wait;
            None waits as long as the server's ``lock_timeout`` lets it.
        shared: hold it together with other shared holders, excluding exclusive ones.
        using: the database alias; ``DBLOCK_DATABASE``, else ``default``. It must be the one whose
            rows the lock protects.

    Raises:
        LockTimeout: somebody else still had it. Nothing is locked, the transaction is usable.
        LockDeadlock: waiting would never have ended. Nothing is locked, as above.
        LockTableFull: the server has no room for more locks.
        UnsafeIsolation: above READ COMMITTED, unless ``DBLOCK_ALLOW_SNAPSHOT_ISOLATION``.
        StandbyDatabase, UnsupportedDatabase: a lock there would protect nothing.
        TypeError, ValueError: the key or the timeout can't be one; before any SQL.

    Source: PostgreSQL manual, 13.3.5 "Advisory Locks".
    """

    def __init__(
        self,
        *key: KeyPart | Callable[..., KeyPart],
        timeout: float | EllipsisType | None = ...,
        shared: bool = False,
        using: str | None = None,
    ) -> None:
        def for_call(*args: Any, **kwargs: Any) -> AdvisoryBlock[HeldLock]:
            parts = (part(*args, **kwargs) if is_argument(part) else part for part in key)
            return advisory_lock(*parts, timeout=timeout, shared=shared, using=using)

        # Encoded here, so that a wrong part fails where it is written, not where it is entered.
        if any(map(callable, key)) and any(map(is_argument, key)):
            named(tuple("" if is_argument(part) else part for part in key))
            super().__init__(None, for_call, shared, _take_one, timeout=timeout, using=using)
        else:
            super().__init__((named(key),), None, shared, _take_one, timeout=timeout, using=using)


def _take_one(
    request: Request,
    timeout: float | None,
    joined: bool,  # noqa: FBT001 - as Take
    holders: "list[Rows]",
) -> tuple[HeldLock, float]:
    waited = lock(request, timeout=timeout, joined=joined, holders=holders)
    using = request.connection.alias
    held = HeldLock(request.keys[0].parts, request.ids[0], using, request.shared, waited)
    return held, waited


class advisory_locks(AdvisoryBlock[HeldLocks]):  # noqa: N801
    """Lock several keys until the transaction ends: all of them, or none.

    The same promises as :class:`advisory_lock`, for all keys together, under one deadline and in
    one round trip. They are taken in the order of their numbers, whatever order they are given
    in, so two calls can't deadlock with each other. Two *nested* calls still can.

    As a decorator, ``keys`` may be a callable that gets the call's arguments and returns the keys.

    To lock some keys exclusively and share others, name both lists::

        with advisory_locks(exclusive=[("account", a)], shared=[("rates", day)]):

    A key that is in both lists is locked exclusively.

    Args:
        keys: the keys; each a tuple of parts, or a single part. ``DBLOCK_MAX_KEYS`` (1,000) at
            most, because every lock takes a place in a table that the whole cluster shares.
        exclusive: more keys that are locked exclusively.
        timeout: seconds to wait for all of them together; as in :class:`advisory_lock`, but 0 may
            wait for a millisecond, because several keys are asked for in the waiting form.
        shared: True to share all of ``keys``; or a list of keys to share, beside the others.
        using: the database alias, as in :class:`advisory_lock`.

    Raises:
        LockTimeout, LockDeadlock, LockTableFull, UnsafeIsolation, StandbyDatabase,
        UnsupportedDatabase: none of the keys is locked; as in :class:`advisory_lock`.
        TypeError, ValueError: there are no keys, too many, one can't be a key, or the arguments
            are not lists of keys; before any SQL.
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
            raise ValueError("advisory_locks() needs at least one key: none would lock nothing.")
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
    joined: bool,  # noqa: FBT001 - as Take
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

    Never waits. True promises what :class:`advisory_lock` promises inside an open transaction;
    False promises nothing, and nothing was locked. Being told True for a key that this transaction
    has already locked is right: it is locked.

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`.
        shared: hold it together with other shared holders.
        using: the database alias, as in :class:`advisory_lock`.

    Raises:
        TransactionManagementError: no transaction is open, so the lock would be gone at once.
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase, TypeError,
        ValueError: as in :class:`advisory_lock`.
    """
    wanted = named(key)
    connection = connection_for(using)
    if not in_transaction(connection):
        raise TransactionManagementError(
            "try_advisory_lock() needs an open transaction, or the lock would end before it "
            "returns. Call it inside transaction.atomic(), or use 'with advisory_lock(…, "
            "timeout=0)', which opens one."
        )
    return try_lock(Request.of((wanted,), shared=shared, connection=connection))


def _several(keys: Keys) -> tuple[NamedKey, ...]:
    if isinstance(keys, str | bytes):
        raise TypeError(
            f"advisory_locks() takes a list of keys, not {type(keys).__name__}: "
            f"advisory_locks([('inventory', sku), …]). For a single key there is advisory_lock()."
        )
    if isinstance(keys, tuple) and not all(isinstance(key, tuple) for key in keys):
        raise TypeError(
            "advisory_locks() takes a list of keys, and a tuple of parts is a single key: "
            "advisory_locks([('account', 1), …]), or advisory_lock('account', 1) for that one."
        )
    most = conf.max_keys + 1  # more are refused; an endless iterable is not read to its end
    return tuple(
        named(key if isinstance(key, tuple) else (key,)) for key in itertools.islice(keys, most)
    )
