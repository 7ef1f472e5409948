"""``fenced_lock``: one holder at a time, for work longer than a transaction."""

import asyncio
import copy
import functools
import json
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.db import connections
from django.dispatch import Signal

from django_dblock import signals
from django_dblock.conf import MAX_TIMEOUT, are_seconds, conf, is_seconds
from django_dblock.core.application_name import NamedKey, named
from django_dblock.core.connection import after_fork_in_child
from django_dblock.core.decorators import (
    Guard,
    mark,
    refuse_unfinished,
    refuse_what_runs_later,
)
from django_dblock.exceptions import DblockError, LockTimeout, SelfDeadlock
from django_dblock.fencing import async_lock, store
from django_dblock.fencing.acquire import Attempt, Success
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.lease import Lease, is_ttl, not_a_ttl
from django_dblock.fencing.lease_name import lease_name
from django_dblock.fencing.store import Place, Wish
from django_dblock.keys import KeyPart, is_argument

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L")


Caller: TypeAlias = threading.Thread | asyncio.Task[Any]


def _current_caller() -> Caller:
    """Return the current asyncio task, else the current thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return task or threading.current_thread()


class Entry(Generic[L]):
    """A block that was entered: the object, its lease, and the thread or task that entered."""

    def __init__(self, block: object, lease: L) -> None:
        self.block = block
        self.lease = lease
        self.caller = _current_caller()

    def left_behind(self) -> str | None:
        """Return why the block can't be left any more; None if it still can."""
        # Don't test for threading.Thread: gevent replaces that class.
        if isinstance(self.caller, asyncio.Task):
            ended = "event loop" if self.caller.get_loop().is_closed() else None
        else:
            ended = None if self.caller.is_alive() else "thread"
        return ended and f"the {ended} that entered the block has ended without leaving it"

    @property
    def is_orphan(self) -> bool:
        """Whether the thread or task that entered the block has ended."""
        if isinstance(self.caller, asyncio.Task):
            return self.caller.done()
        return not self.caller.is_alive()


class _Chain(NamedTuple, Generic[L]):
    """The latest block that was entered, and the chain of the blocks before."""

    entry: Entry[L]
    before: "_Chain[L] | None"


class Blocks(Generic[L]):
    """The blocks that are open in this process; one may be left in another thread or task.

    Entering and leaving cost the same however many blocks are open, if the latest is left first.
    """

    def __init__(self, name: str) -> None:
        # Which blocks the code that runs here has entered: each thread and each task has its own.
        self._here: ContextVar[_Chain[L] | None] = ContextVar(name, default=None)
        # By the object of the block, which the entry keeps alive.
        self._open: dict[int, list[Entry[L]]] = {}
        self._replace_mutex()
        after_fork_in_child(self._replace_mutex)

    def _replace_mutex(self) -> None:
        # New, because no thread in a forked child could ever free the old one. Reentrant, because
        # the garbage collection of a generator may leave its block here, in the middle of a method.
        self._mutex = threading.RLock()

    @property
    def entered_here(self) -> Iterator[Entry[L]]:
        """The blocks that the code that runs here has entered, the latest first."""
        chain = self._here.get()
        while chain is not None:
            yield chain.entry
            chain = chain.before

    def add(self, entry: Entry[L]) -> None:
        """Note that a block was entered here."""
        self._here.set(_Chain(entry, self._here.get()))
        with self._mutex:
            mine = self._open.get(id(entry.block), [])
            mine.append(entry)
            self._open[id(entry.block)] = mine

    def remove(self, block: object) -> L:
        """Note that the block was left; return its lease.

        Raises:
            RuntimeError: it is not open, or nobody can say which one was meant.
        """
        with self._mutex:
            mine = self._open.get(id(block), [])
            # The latest of this context; else of an ended thread or task; else the only one.
            entry = next((entry for entry in self.entered_here if entry in mine), None)
            if entry is None:
                found = [entry for entry in mine if entry.is_orphan] or mine
                if not found or not (found[-1].is_orphan or len(found) == 1):
                    name = type(block).__name__
                    raise RuntimeError(_NOT_HERE.format(name=name, count=len(found)))
                entry = found[-1]
            mine.remove(entry)
            if not mine:
                del self._open[id(block)]
        self._forget_here(entry)
        return entry.lease

    def _forget_here(self, entry: Entry[L]) -> None:
        chain = self._here.get()
        if chain is not None and chain.entry is entry:  # nearly always
            self._here.set(chain.before)
            return
        kept = [other for other in self.entered_here if other is not entry]
        chain = None
        for other in reversed(kept):
            chain = _Chain(other, chain)
        self._here.set(chain)


_blocks: Blocks[Lease] = Blocks("dblock_entered")


class fenced_lock:  # noqa: N801 - context managers are lower-case nouns
    """Hold a key across transactions, for long work, with a token that refuses stale holders.

    Entering acquires a *lease* of ``ttl`` seconds, which a heartbeat renews until the block is
    left. If this process dies or freezes, the lease expires by the database's clock, and the next
    holder can acquire it. The object is configuration only: share it between threads, use it
    again, decorate with it. It is not re-entrant: inside the block nobody else gets the key, the
    caller itself included.

    Guaranteed:

    - At any time at most one holder has an unexpired lease on the key.
    - The token of each grant is greater than the tokens of all grants before it, permanently.
    - Writes under ``lock.guard()`` or by ``save_fenced(lock)`` are refused once the lease is no
      longer held, even if this process was frozen and does not know yet.

    Not guaranteed: that unguarded code stops when the lease is lost. Call ``lock.check()`` before
    each step, guard what you write, and pass ``lock.token`` to other systems, which must refuse a
    token smaller than the largest they have seen. Nothing is guaranteed about commits in another
    database. A crash of the server just after a release may lose the release: then the lease is
    held until it expires, and ``lock_delay`` passes.

    ``async with`` and async functions work as well; the task is cancelled when the lease is lost.
    As a decorator, a callable among the parts of the key is called with the call's arguments.

    Leave the block in the thread or task that entered it. A lease whose block was left elsewhere is
    released. If the thread that entered ends without leaving, the lease is no longer renewed.

    Args:
        key: the parts of the key, see :mod:`django_dblock.keys`.
        ttl: seconds after which an unrenewed lease expires. A holder may be frozen, or without its
            database, for about two thirds of the ttl; the next holder waits up to one ttl for a
            holder that died.
        timeout: seconds to wait; 0 (the default) does not wait, None waits indefinitely. An
            ``advisory_lock`` waits for 10 seconds by default.
        heartbeat: whether to renew the lease every third of the ttl; if False, call ``renew()``.
        hold_at_least: seconds since the grant for which nobody else acquires the key, even if the
            lease is released earlier, or if its holder dies: for jobs that must not run twice in
            short order. If the holder dies, these seconds count from the last renewal.
        lock_delay: seconds for which nobody acquires the key after the lease *expired* unreleased,
            so that requests that the lost holder has sent elsewhere can end. A holder that leaves
            the block after the loss does not shorten the delay.
        on_lost: called once with the lease when the lease is lost, in the thread that notices the
            loss: mostly the heartbeat's. So it must be quick, and must not run queries.
        using: the database alias of the lock table; ``DBLOCK_DATABASE``, else where the router
            writes :class:`django_dblock.FencedLock`.
        fair: wait in a queue: among callers that also set it, first come, first served.
        metadata: a JSON object that ``dblock list``, the monitor and the admin show.

    Raises:
        LockTimeout: on entering, another holder had the lease until the timeout.
        SelfDeadlock: on entering with ``timeout=None``, this thread or task holds the key itself.
        OpenTransaction: on entering, a transaction was open: the lease would be invisible until the
            commit, and lost after a rollback. Or a transaction was open on leaving.
        LockLost: on leaving, the lease was lost before the block ended.
        NotReplicated: on entering, no synchronous standby confirmed the grant.
        StandbyDatabase: on entering or leaving, the server is a standby.
        UnsupportedDatabase: on entering, the database is not PostgreSQL.
        NotSupportedError: on entering or leaving, the connection is in psycopg's pipeline mode.
        django.db.Error: on entering or leaving, the statement failed, or its result is unknown.
        RuntimeError: on leaving, the block was not entered in this thread or task, and it is
            unclear which of the open blocks is meant.
        TypeError, ValueError: a part of the key or an argument is not valid; before any SQL.
        TypeError: the decorated function returned something that runs later, such as a generator.

    An error of the block itself is raised instead of LockLost or an error of the release. If the
    release fails, the lease is no longer renewed, and expires.

    Source: C. Gray and D. Cheriton, "Leases", SOSP 1989; M. Kleppmann, "How to do distributed
    locking", 2016 (fencing tokens).
    """

    def __init__(  # noqa: PLR0913 - each has a default that is right for most
        self,
        *key: KeyPart | Callable[..., KeyPart],
        ttl: float,
        timeout: float | None = 0,
        heartbeat: bool = True,
        hold_at_least: float = 0,
        lock_delay: float = 0,
        on_lost: Callable[[Lease], object] | None = None,
        using: str | None = None,
        fair: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if not is_ttl(ttl):
            raise not_a_ttl("ttl", ttl)
        if not are_seconds(0 if timeout is None else timeout, hold_at_least, lock_delay):
            raise _not_seconds(timeout, hold_at_least=hold_at_least, lock_delay=lock_delay)
        if not (metadata is None or isinstance(metadata, dict)):
            raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}.")
        if not (on_lost is None or callable(on_lost)):
            raise TypeError(f"on_lost must be callable, not {type(on_lost).__name__}.")
        self._template = key
        callables = any(map(callable, key)) and any(map(is_argument, key))
        known = named(
            tuple("" if is_argument(part) else part for part in key) if callables else key
        )
        self._key = None if callables else known
        self._timeout = timeout
        self._heartbeat = heartbeat
        self._hold_at_least = hold_at_least
        self._on_lost = on_lost
        self._using = using
        self._metadata = dict(metadata) if metadata else {}
        # A holder that dies never releases its lease, so the grant itself has to keep the key for
        # hold_at_least. The release replaces this delay by the rest of hold_at_least.
        delay = max(float(lock_delay), float(hold_at_least) - float(ttl))
        self._wish = Wish(float(ttl), delay, storable(self._metadata), fair)

    def __enter__(self) -> Lease:
        attempt = self._attempt()
        lease: Lease | None = None
        try:
            try:
                while (lease := self._once(attempt)) is None:
                    attempt.pause()
            finally:
                attempt.close()
            self._push(lease)
        except BaseException:  # __exit__ is not called if __enter__ raises
            if lease is not None:
                lease.leave(failed=True)
            raise
        return lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease = self._pop()
        if lease.leave(failed=kind is not None) and kind is None:
            raise lease.loss()

    async def __aenter__(self) -> Lease:
        once = partial(self._once, caller=_current_caller())
        lease = await async_lock.enter(self._attempt, once)
        self._push(lease)
        return lease

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await async_lock.leave(self._pop(), error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function, sync or async, that runs each call inside the block.

        Raises:
            TypeError: the function is a class, a generator function or another function whose body
                runs after the call. When called: the function returned something that runs later.
        """
        decorator = type(self).__name__
        refuse_what_runs_later(function, decorator)
        guard = Guard(decorator, outside=True, using=self._using)
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with self._for_call(args, kwargs):
                    result = await function(*args, **kwargs)
                    refuse_unfinished(result, function, decorator)
                    return result

            mark(awaited, function, guard)
            return cast("Callable[P, R]", awaited)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._for_call(args, kwargs):
                result = function(*args, **kwargs)
                refuse_unfinished(result, function, decorator)
                return result

        mark(locked, function, guard)
        return locked

    def _for_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        if self._key is not None:
            return self
        block = copy.copy(self)
        block._key = named(  # noqa: SLF001 - the same class
            tuple(part(*args, **kwargs) if is_argument(part) else part for part in self._template)
        )
        return block

    def _entered_key(self) -> NamedKey:
        if self._key is None:
            raise TypeError(
                "A callable in the key is for the decorator, where it is called with the call's "
                "arguments. In a with statement, pass its value."
            )
        return self._key

    def _attempt(self) -> Attempt:
        key = self._entered_key()
        using = store.alias_for(self._using)
        place = Place(key, lease_name(key, conf.namespace), using)
        return Attempt(place, self._wish, self._timeout)

    def _once(self, attempt: Attempt, caller: Caller | None = None) -> Lease | None:
        try:
            success = attempt.once()
            if success is None and attempt.is_endless and self._is_held_by(caller, attempt):
                raise SelfDeadlock(**attempt.place.facts, act="waited for", advice=_ADVICE)
        except LockTimeout as error:
            self._send(signals.lock_timeout, attempt.place, waited=error.waited)
            if self._is_held_by(caller, attempt):
                raise attempt.time_is_up(error.waited, note=_YOURSELF) from None
            raise
        except DblockError as error:
            self._send(signals.lock_refused, attempt.place, error=error)
            raise
        if success is None:
            return None
        # Later statements use the schema of the row, even if the search path changes.
        place = replace(attempt.place, schema=success.grant.schema)
        lease = self._lease(place, success)
        # No other connection sees a lease in TestCase's transaction, so the heartbeat can't renew
        # it.
        renews = self._heartbeat and not connections[lease.using].in_atomic_block
        try:
            for trust in lease.trusts:
                heartbeat.watch(trust, renews=renews)
            waited = success.waited
            self._send(
                signals.lock_acquired, attempt.place, waited=waited, took=waited, token=lease.token
            )
        except BaseException:  # no thread can be started, or a signal handler's exception
            lease.leave(failed=True)
            raise
        return lease

    @property
    def _sender(self) -> type:
        """The class that users name as the sender of the signals."""
        return type(self)

    def _lease(self, place: Place, success: Success) -> Lease:
        return Lease(
            place,
            success,
            ttl=self._wish.ttl,
            hold_at_least=self._hold_at_least,
            metadata=self._metadata,
            on_lost=self._on_lost,
        )

    @staticmethod
    def _is_held_by(caller: Caller | None, attempt: Attempt) -> bool:
        """Return whether the caller itself holds the lease that it waits for."""
        refusal = attempt.refusal
        if refusal is None:
            return False
        caller = caller or _current_caller()
        # In another tenant's schema, a row of the same name may have the same token.
        table = (attempt.place.using, refusal.schema)
        return any(
            entry.caller is caller
            and entry.lease.remaining > 0  # a hold_at_least or lock_delay ends without the caller
            and entry.lease.fences_rows  # another permit of a semaphore may be released
            and (entry.lease.place.name, entry.lease.token) == (attempt.place.name, refusal.token)
            and (entry.lease.using, entry.lease.place.schema) == table
            for entry in _blocks.entered_here
        )

    def _push(self, lease: Lease) -> None:
        entry = Entry(self, lease)
        for trust in lease.trusts:
            trust.left_behind = entry.left_behind
        _blocks.add(entry)

    def _pop(self) -> Lease:
        return _blocks.remove(self)

    def _send(self, signal: Signal, place: Place, **more: object) -> None:
        if signal.receivers:
            signal.send_robust(self._sender, kind=place.kind, shared=False, **place.facts, **more)


_YOURSELF = "yourself, in a block further out (a fenced lock is not re-entrant), as "
_ADVICE = (
    "You hold it yourself, in a block further out, and a fenced lock is not re-entrant. Pass the "
    "lease of the outer block on, or call the inner function's body without the lock."
)
_NOT_HERE = (
    "A block of {name}() was left that was not entered in this thread or task, and {count} blocks "
    "of the same object are open in others, so it is unclear which block was left. Enter and leave "
    "a block in one thread or task, or use a separate object for each block."
)


def _not_seconds(timeout: object, **others: object) -> ValueError:
    """Return the error for the first of these arguments that is not a number of seconds."""
    if not (timeout is None or is_seconds(timeout)):
        return ValueError(
            f"timeout={timeout!r} is not a number of seconds from 0 (do not wait) to "
            f"{MAX_TIMEOUT:.0f}; None waits indefinitely."
        )
    argument, value = next(found for found in others.items() if not is_seconds(found[1]))
    return ValueError(
        f"{argument}={value!r} is not a number of seconds from 0 to {MAX_TIMEOUT:.0f}."
    )


def storable(metadata: dict[str, Any]) -> str:
    """Return the metadata of a lease as JSON that the server can store.

    Raises:
        TypeError, ValueError: the metadata can't be stored.
    """
    if not metadata:
        return "{}"
    text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
    text.encode()  # a lone surrogate is a ValueError, too
    if "\\u0000" in text:
        raise ValueError("metadata: PostgreSQL's jsonb can't hold the character NUL.")
    return text
