"""Real processes that race each other on the test database.

Each is forked from a server that has Django set up, connects by itself, and waits at a barrier,
so that the race starts when all are ready. What a process raises is raised here.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import pytest
from django.db import connections

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.helpers.child"])

LIMIT = 180
"""Seconds after which a process that does not answer counts as hanging."""


class Process:
    """A child that runs ``function(*arguments)``; it may talk through ``channel`` if asked to."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        barrier: Any = None,
        names: dict[str, str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:  # the fork server doesn't know pytest's path
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            forkserver.ensure_running()
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_run,
            args=(theirs, barrier, names or _names(), options or {}, function, arguments),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def receive(self) -> Any:
        """Return what the child sends next: a message, or at its end the function's result."""
        assert self._pipe.poll(LIMIT), "the process does not answer"
        kind, value = self._pipe.recv()
        if kind == "error":
            raise value[0] from RuntimeError(f"in the child process:\n{value[1]}")
        return value

    def send(self, message: Any) -> None:
        self._pipe.send(message)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as an out-of-memory killer would, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._process.join(LIMIT)

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join(LIMIT)
        self._pipe.close()


def race(count: int, function: Callable[..., Any], *arguments: Any, **more: Any) -> list[Any]:
    """Run ``function(number, *arguments)`` in ``count`` processes at once; return their results."""
    barrier = _context.Barrier(count)
    processes = [
        Process(function, number, *arguments, barrier=barrier, **more) for number in range(count)
    ]
    try:
        return [process.receive() for process in processes]
    finally:
        for process in processes:
            process.close()


@contextmanager
def process(function: Callable[..., Any], *arguments: Any, **more: Any) -> Iterator[Process]:
    """Run ``function(channel, *arguments)`` beside the test; end it at the end of the block."""
    child = Process(_with_channel, function, *arguments, **more)
    try:
        yield child
    finally:
        child.close()


class Channel:
    """The child's end of the talk with the test."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, message: Any) -> None:
        self._pipe.send(("message", message))

    def receive(self) -> Any:
        assert self._pipe.poll(LIMIT), "the test does not answer"
        return self._pipe.recv()


_channel: Channel


def _with_channel(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(_channel, *arguments)


def _names() -> dict[str, str]:
    return {alias: connections[alias].settings_dict["NAME"] for alias in ("default", "other")}


def _run(
    pipe: Connection,
    barrier: Any,
    names: dict[str, str],
    options: dict[str, Any],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    global _channel  # noqa: PLW0603 - one child, one channel
    _channel = Channel(pipe)
    for alias, name in names.items():
        connections[alias].settings_dict["NAME"] = name
    connections["default"].settings_dict.update(options)
    try:
        if barrier is not None:
            connections["default"].ensure_connection()
            barrier.wait(LIMIT)
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 - the test decides what it means
        pipe.send(("error", (error, traceback.format_exc())))
    else:
        pipe.send(("result", result))
    finally:
        connections.close_all()
