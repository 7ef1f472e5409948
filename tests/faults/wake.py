"""Wakes the workers that stopped themselves, and writes down what they brought on themselves."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from tests.faults.clock import now


class Wakes:
    """Reads the channel on which workers tell of their stops."""

    def __init__(self, messages: int, fault: Callable[..., None]) -> None:
        self._messages = messages
        self._fault = fault
        self._due: list[tuple[float, int]] = []
        self._rest = b""

    def look(self) -> None:
        """Read what is there, and wake whose time has come."""
        with suppress(BlockingIOError):
            self._rest += os.read(self._messages, 65_536)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            kind, pid, seconds = line.decode().split()
            self._fault(kind, pid=int(pid), seconds=float(seconds))
            if kind == "stop":
                self._due.append((now() + float(seconds), int(pid)))
        for wake in [wake for wake in self._due if wake[0] <= now()]:
            self._due.remove(wake)
            with suppress(ProcessLookupError):
                os.kill(wake[1], signal.SIGCONT)
