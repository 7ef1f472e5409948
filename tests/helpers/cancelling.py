"""Cancel a task of an event loop from the thread that works for it."""

import asyncio
import threading

LIMIT = 60
"""Seconds after which a loop that has not cancelled its task never will."""


def cancel(task: "asyncio.Task[object]", loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the task, and return when its loop has done so."""
    cancelled = threading.Event()

    def act() -> None:
        task.cancel()
        cancelled.set()

    loop.call_soon_threadsafe(act)
    assert cancelled.wait(LIMIT), "the event loop never cancelled its task"
