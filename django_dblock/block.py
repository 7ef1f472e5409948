"""Entering and leaving a block that holds locks: whose transaction it is, and when it ends."""

import functools
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType, TracebackType
from typing import Any, Generic, NoReturn, ParamSpec, Self, TypeVar

from asgiref.sync import iscoroutinefunction
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, TransactionManagementError
from django.dispatch import Signal
from psycopg.pq import TransactionStatus

from django_dblock import signals
from django_dblock.acquire import Request, lock
from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds
from django_dblock.databases import connection_for, in_transaction
from django_dblock.exceptions import DblockError, LockDeadlock, LockTimeout
from django_dblock.guards import Guard, mark
from django_dblock.labels import NamedKey

P = ParamSpec("P")
R = TypeVar("R")
HeldT = TypeVar("HeldT")

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


class AdvisoryBlock(ABC, Generic[HeldT]):
    """Configuration only; each entry leaves its own record on the connection, as Atomic does.

    So one object can be shared by threads, re-entered, and called recursively.
    """

    def __init__(
        self, *, timeout: float | EllipsisType | None, shared: bool, using: str | None
    ) -> None:
        if not (timeout is None or timeout is ... or is_seconds(timeout)):
            raise ValueError(
                f"timeout={timeout!r} is not a number of seconds from 0 (do not wait) to "
                f"{MAX_TIMEOUT:.0f}; None waits for ever."
            )
        self._timeout = timeout
        self._shared = shared
        self._using = using

    @abstractmethod
    def _named(self) -> tuple[NamedKey, ...]:
        """Return the keys, encoded and named."""

    @abstractmethod
    def _held(self, request: Request, waited: float) -> HeldT:
        """Return what ``with … as`` binds."""

    @abstractmethod
    def _for_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """Return the block for one call of the decorated function."""

    def __enter__(self) -> HeldT:
        timeout = (
            conf.advisory_timeout if isinstance(self._timeout, EllipsisType) else self._timeout
        )
        connection = connection_for(self._using)
        request = Request.of(self._named(), shared=self._shared, connection=connection)
        entries = _entries(connection)
        depth = len(entries)
        atomic = None
        if not in_transaction(connection):
            atomic = transaction.atomic(using=connection.alias)
            atomic.__enter__()
        started = time.monotonic()
        try:
            waited = lock(request, timeout=timeout, joined=atomic is None)
            held = self._held(request, waited)
            since = time.monotonic()
            entries.append(_Entry(request, atomic, since))
            self._send(signals.lock_acquired, request, waited=waited, took=since - started)
        except BaseException as error:  # nobody else will leave what was entered here
            del entries[depth:]
            if atomic is not None:
                atomic.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, LockTimeout):
                self._send(signals.lock_timeout, request, waited=error.waited)
            elif isinstance(error, LockDeadlock):
                self._send(signals.lock_deadlock, request, waited=time.monotonic() - started)
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
            held = time.monotonic() - entry.since
            self._send(signals.lock_released, entry.request, held=held, committed=committed)

    async def __aenter__(self) -> NoReturn:
        raise TypeError(_NO_ASYNC.format(what="'async with'"))

    async def __aexit__(self, *_: object) -> None:
        """Never reached: entering raises."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Run each call of the function inside the block."""
        name = getattr(function, "__qualname__", repr(function))
        if isinstance(function, type):
            raise TypeError(
                f"{name} is a class: decorate the method that needs the lock, with "
                f"django.utils.decorators.method_decorator(…, name='post') for a view."
            )
        if iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(_NO_ASYNC.format(what=f"the async function {name}"))
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{name} is a generator function: the lock would be gone before its first line "
                f"runs. Use 'with' inside it."
            )

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._for_call(args, kwargs):
                return function(*args, **kwargs)

        mark(locked, function, Guard(type(self).__name__, outside=False, using=self._using))
        return locked

    def _send(self, signal: Signal, request: Request, **more: object) -> None:
        if signal.receivers:  # nothing is built where nobody listens
            signal.send_robust(
                type(self),
                kind="advisory",
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
