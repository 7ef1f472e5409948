"""Faults at the boundaries of a worker's statements: before one is sent, after one is answered.

A fault from outside seldom hits the few microseconds that matter. So a worker throws dice at each
boundary, from its own seed, and brings the fault on itself: it stops (and is woken by the trial
after a time), dies, or has its backend ended, with the very signal that an outsider would send.
"""

import os
import random
import signal
import threading
from typing import Any

import psycopg

from tests.faults.history import Writer


class Boundaries:
    """The dice of one worker.

    Args:
        dice: seeded.
        history: where each fault is noted.
        faults: by fault, its share of all boundaries: ``stop``, ``kill``, ``terminate``.
        pauses: seconds, the shortest and the longest ``stop``.
        server: how to reach the server directly, to end a backend there.
        channel: the file descriptor on which the trial hears of stops.
    """

    def __init__(
        self,
        dice: random.Random,
        history: Writer,
        faults: dict[str, float],
        pauses: tuple[float, float],
        server: str,
        channel: int,
    ) -> None:
        self._dice = dice
        self._history = history
        self._faults = faults
        self._pauses = pauses
        self._server = server
        self._channel = channel
        self._busy = threading.Lock()

    def install(self) -> None:
        """Stand at each exchange of messages of every connection that this process opens."""
        plain = psycopg.Connection.wait

        def wait(driver: Any, *args: Any, **more: Any) -> Any:
            self.pass_by(driver)
            answer = plain(driver, *args, **more)
            self.pass_by(driver)
            return answer

        # The fast path is taken only where this method stands in a file of psycopg's.
        wait.__code__ = wait.__code__.replace(co_filename=plain.__code__.co_filename)
        psycopg.Connection.wait = wait

    def pass_by(self, driver: Any) -> None:
        if not self._busy.acquire(blocking=False):
            return  # the fault's own statement, or another thread's fault
        try:
            thrown = self._dice.random()
            for fault, share in self._faults.items():
                if thrown < share:
                    getattr(self, f"_{fault}")(driver)
                    return
                thrown -= share
        finally:
            self._busy.release()

    def _stop(self, _: Any) -> None:
        seconds = self._dice.uniform(*self._pauses)
        self._history.note("stop", seconds=seconds)
        os.write(self._channel, f"stop {os.getpid()} {seconds}\n".encode())
        os.kill(os.getpid(), signal.SIGSTOP)

    def _kill(self, _: Any) -> None:
        self._history.note("kill")
        os.write(self._channel, f"kill {os.getpid()} 0\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def _terminate(self, driver: Any) -> None:
        if driver.closed:
            return
        self._history.note("terminate")
        try:
            with psycopg.connect(self._server, autocommit=True) as control:
                control.execute("SELECT pg_terminate_backend(%s, 1000)", [driver.info.backend_pid])
        except psycopg.Error:
            return  # the server is away just now, and the backend with it
