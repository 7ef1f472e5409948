"""Processes that never outlive the one that started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 8.0


@contextmanager
def child(
    module: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m module`` for the time of the block.

    It gets a session of its own: Ctrl-C in a terminal reaches the demo alone, which then ends its
    children in order. Its standard input is a pipe from us, to be watched by ``lifeline``: should
    the demo be killed outright, that pipe ends, and the child with it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped process would not notice
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if not _ended_within(PATIENCE, process):
        os.killpg(process.pid, signal.SIGKILL)
        _ended_within(PATIENCE, process)


def _ended_within(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    """Wait for its end, without ``Popen.wait``: whether it has ended.

    A signal whose handler raises may leave that method's lock taken; who calls it after that,
    while cleaning up, would wait indefinitely.
    """
    over = time.monotonic() + seconds
    while process.returncode is None:
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:  # whoever stopped it has seen its end
            return True
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > over:
            return False
        else:
            time.sleep(0.01)  # between two looks, not instead of one
    return True
