"""``async with fenced_lock(...)``: the same statements, from a thread; a loss cancels the block.

A statement that a thread is running can't be recalled. So a cancellation waits for the statement's
result: a lease that was granted meanwhile is released, and a release is always sent.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from asgiref.sync import sync_to_async

from django_dblock.core.cancellation import to_its_end
from django_dblock.fencing.acquire import Attempt
from django_dblock.fencing.lease import Lease


class Stop:
    """A callable that cancels the task that holds a lease, once, unless the task left the block."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that awaits threads runs in a task
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._cancelling = task.cancelling()
        self._fired = False
        self._left = False

    def __call__(self) -> None:
        """Cancel the task, from the thread that notices the loss."""
        with suppress(RuntimeError):  # the loop is closed: there is nothing left to cancel
            self._loop.call_soon_threadsafe(self._fire)

    def _fire(self) -> None:
        if not (self._left or self._fired):
            # A task that has ended, because it only entered the block, can't be cancelled.
            self._fired = self._task.cancel("the fenced lock is lost")

    def leave(self) -> None:
        """Cancel the task no more."""
        self._left = True

    def was_the_only_one(self) -> bool:
        """Return whether only this object has cancelled the task; call this once."""
        return self._fired and self._task.uncancel() <= self._cancelling


def _release(lease: Lease | None) -> None:
    if lease is not None:
        lease.leave(failed=True)


async def enter(make: Callable[[], Attempt], once: Callable[[Attempt], Lease | None]) -> Lease:
    """Wait for the lease without blocking the event loop; return the lease."""
    attempt = await sync_to_async(make)()
    lease: Lease | None = None
    cancelled: asyncio.CancelledError | None = None
    try:
        while True:
            lease, cancelled = await to_its_end(sync_to_async(once)(attempt))
            if lease is not None or cancelled is not None:
                break
            await attempt.apause()
    finally:
        _, later = await to_its_end(sync_to_async(attempt.close)())
        if cancelled := later or cancelled:
            await to_its_end(sync_to_async(_release)(lease))
            raise cancelled
    assert lease is not None  # noqa: S101 - else the task was cancelled
    lease.stop_on_loss(Stop())  # not earlier: until here only other code can cancel the task
    return lease


async def leave(lease: Lease, error: BaseException | None) -> None:
    """Release the lease at the end of the block.

    Raises:
        LockLost: the lease was lost, and the block ended because of the loss or without an error.
        CancelledError: the task was cancelled during the release.
    """
    stop = lease.stop
    assert isinstance(stop, Stop)  # noqa: S101 - set by enter()
    stop.leave()
    try:
        _, cancelled = await to_its_end(sync_to_async(lease.leave)(failed=error is not None))
    except asyncio.CancelledError as arrived:  # the release has failed, too: see the cause
        cancelled = arrived
    if stop.was_the_only_one() and (error is None or isinstance(error, asyncio.CancelledError)):
        raise lease.loss() from (error or cancelled)
    if cancelled is not None:
        raise cancelled
    if error is None and lease.lost:
        raise lease.loss()
