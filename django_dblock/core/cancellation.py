"""Awaiting a call to its end, also while the task is cancelled."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(call: Awaitable[T]) -> tuple[T, asyncio.CancelledError | None]:
    """Return the call's result, and the cancellation if the task was cancelled meanwhile."""
    task = asyncio.ensure_future(call)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return task.result(), cancelled
