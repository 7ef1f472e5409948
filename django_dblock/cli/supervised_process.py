"""The command of ``dblock run``: a process group of its own, and the watchdog of that group."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Self

from django_dblock.cli import watchdog

_SMALLEST_CHANGE = 0.001
"""Seconds; a smaller change of the time is not sent to the watchdog."""


class Job:
    """A command and the processes that it starts, as long as they stay in its process group.

    Attributes:
        group: the number of the process group.
        returncode: the command's return code, as in ``subprocess``; None until the command has
            ended.
        stopped: whether the command has been stopped since the last call of :meth:`look`.
    """

    def __init__(self) -> None:
        self._watchdog = subprocess.Popen(  # noqa: S603 - a file of this package
            [sys.executable, "-I", "-S", watchdog.__file__, str(os.getpgrp())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        self.group = self._watchdog.pid
        self.returncode: int | None = None
        self.stopped = False
        self._command: subprocess.Popen[bytes] | None = None
        self._sent = 0.0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._command is not None:
            self.signal(signal.SIGKILL)  # a process is left only after a failure
        self._watchdog.kill()
        self._watchdog.wait()
        for pipe in (self._to_watchdog, self._from_watchdog):
            pipe.close()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the command with this process's standard input and outputs, and no other open file.

        Raises:
            ChildProcessError: the watchdog did not start.
            FileNotFoundError: there is no such command.
            OSError: the command can't be run.
        """
        if not self._from_watchdog.read(1):
            raise ChildProcessError("the process that watches over the command did not start")
        self._command = subprocess.Popen(  # noqa: S603 - the operator's command
            arguments, env=environment, process_group=self.group
        )

    def keep_until(self, until: float) -> None:
        """Let the watchdog kill the group at this time, unless a later time is set."""
        runs = self._command is not None
        if until > self._sent[0] + _SMALLEST_CHANGE or runs != self._sent[1]:
            self._sent = until, runs
            with contextlib.suppress(BrokenPipeError):  # the watchdog was killed
                self._to_watchdog.write(watchdog.MESSAGE.pack(until, runs))

    def look(self) -> None:
        """Note whether the command has ended or stopped, and reap orphaned child processes."""
        assert self._command is not None  # noqa: S101 - started
        for pid in (self._command.pid, -self.group):
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(pid, os.WNOHANG | os.WUNTRACED))[0]:
                    self._note(*ended)

    def _note(self, pid: int, status: int) -> None:
        assert self._command is not None  # noqa: S101 - started
        if pid != self._command.pid:
            return
        if os.WIFSTOPPED(status):
            self.stopped = True
        else:
            self.returncode = self._command.returncode = os.waitstatus_to_exitcode(status)

    def is_over(self) -> bool:
        """Return whether the command has ended, and no process is left in its group."""
        if self.returncode is not None:
            try:
                os.killpg(self.group, 0)
            except ProcessLookupError:
                return True
            except PermissionError:  # a process of another user is left
                return False
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the group, and to the command if the command has left the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)
        if self.returncode is None and self._has_left():
            self.signal_command(number)

    def _has_left(self) -> bool:
        assert self._command is not None  # noqa: S101 - started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            return os.getpgid(self._command.pid) != self.group
        return False  # the command has ended

    def signal_command(self, number: int) -> None:
        """Send a signal to the command only."""
        if self.returncode is None:
            assert self._command is not None  # noqa: S101 - started
            with contextlib.suppress(PermissionError):
                os.kill(self._command.pid, number)

    @property
    def _to_watchdog(self) -> IO[bytes]:
        assert self._watchdog.stdin is not None  # noqa: S101 - opened with PIPE
        return self._watchdog.stdin

    @property
    def _from_watchdog(self) -> IO[bytes]:
        assert self._watchdog.stdout is not None  # noqa: S101 - opened with PIPE
        return self._watchdog.stdout
