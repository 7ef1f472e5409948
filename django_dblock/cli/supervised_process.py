"""The command of ``dblock run``: a process group of its own, with a keeper beside it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Self

from django_dblock.cli import watchdog

_NOT_WORTH_TELLING = 0.001
"""Seconds."""


class Job:
    """One command and all that it starts, as far as that stays in its process group.

    Attributes:
        group: the number of the process group.
        returncode: the command's, as ``subprocess`` has it; None until it has ended.
        stopped: whether the command has been stopped since the last look.
    """

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", "-S", watchdog.__file__, str(os.getpgrp())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        self.group = self._keeper.pid
        self.returncode: int | None = None
        self.stopped = False
        self._command: subprocess.Popen[bytes] | None = None
        self._told = 0.0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._command is not None:
            self.signal(signal.SIGKILL)  # something is left only if we failed
        self._keeper.kill()
        self._keeper.wait()
        for pipe in (self._told_through, self._heard_through):
            pipe.close()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the command with our standard input and outputs, and no other open file.

        Raises:
            OSError: there is no such command, or it can't be run.
        """
        if not self._heard_through.read(1):
            raise ChildProcessError("the process that watches over the command did not start")
        self._command = subprocess.Popen(  # noqa: S603 - what the caller wants run
            arguments, env=environment, process_group=self.group
        )

    def keep_until(self, until: float) -> None:
        """Let the watchdog kill the group at this time, unless a later time is set."""
        runs = self._command is not None
        if until > self._told[0] + _NOT_WORTH_TELLING or runs != self._told[1]:
            self._told = until, runs
            with contextlib.suppress(BrokenPipeError):  # the watchdog was killed
                self._told_through.write(watchdog.TOLD.pack(until, runs))

    def look(self) -> None:
        """Note whether the command has ended or stopped, and reap orphaned child processes."""
        assert self._command is not None  # noqa: S101 - started
        for pid in (self._command.pid, -self.group):
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(pid, os.WNOHANG | os.WUNTRACED))[0]:
                    self._note(*found)

    def _note(self, pid: int, status: int) -> None:
        assert self._command is not None  # noqa: S101 - started
        if pid != self._command.pid:
            return
        if os.WIFSTOPPED(status):
            self.stopped = True
        else:
            self.returncode = self._command.returncode = os.waitstatus_to_exitcode(status)

    def is_over(self) -> bool:
        """Whether the command has ended, and nothing is left in its group."""
        if self.returncode is not None:
            try:
                os.killpg(self.group, 0)
            except ProcessLookupError:
                return True
            except PermissionError:  # a process of another user is left
                return False
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the group, and to the command where it has left the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)
        if self.returncode is None and self._has_left():
            self.signal_command(number)

    def _has_left(self) -> bool:
        assert self._command is not None  # noqa: S101 - started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            return os.getpgid(self._command.pid) != self.group
        return False  # it has ended

    def signal_command(self, number: int) -> None:
        """Send a signal to the command alone."""
        if self.returncode is None:
            assert self._command is not None  # noqa: S101 - started
            with contextlib.suppress(PermissionError):
                os.kill(self._command.pid, number)

    @property
    def _told_through(self) -> IO[bytes]:
        assert self._keeper.stdin is not None  # noqa: S101 - asked for
        return self._keeper.stdin

    @property
    def _heard_through(self) -> IO[bytes]:
        assert self._keeper.stdout is not None  # noqa: S101 - asked for
        return self._keeper.stdout
