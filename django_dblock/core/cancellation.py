"""Awaiting a call to its end, also while the task is cancelled."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(call: Awaitable[T]) -> tuple[T, asyncio.CancelledError | None]:
    """Return the call's result, and the cancellation if the task was cancelled meanwhile.

    Raises:
        CancelledError: the task was cancelled meanwhile, and the call has failed. The call's error
            is the cause. A caller that catches the call's error must not miss the cancellation.
    """
    task = asyncio.ensure_future(call)
    # asyncio.run() ends a loop by cancelling all of its tasks. It would cancel this task beside the
    # caller's, and the result would be lost, because a thread that runs already can't be cancelled.
    # It does not see a task that is not registered, and waits for the caller's, which waits here.
    asyncio.tasks._unregister_task(task)  # noqa: SLF001 - documented for makers of tasks
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        return task.result(), cancelled
    except BaseException as failure:
        if cancelled is None:
            raise
        raise cancelled from failure
