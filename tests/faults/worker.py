"""One worker: runs its workload, turn after turn, until it is told to stop or killed."""

import importlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from django.db import Error, connections

from django_dblock import DblockError
from django_dblock.core.connection import fast_driver
from django_dblock.fencing import acquire
from tests.faults.boundaries import Boundaries
from tests.faults.clock import mend_sleep, now
from tests.faults.history import Writer
from tests.faults.services import TENANT
from tests.helpers import backends

_PATIENCE = 0.6
"""Seconds for which a waiter that died keeps its place in a queue. Short, as the leases are: with
the six seconds of a real queue a few kills make all workers of a trial wait until it ends. Shorter
than some pauses, so that waiters that live lose their places, too."""

_BREAK = 0.02
"""Seconds after an error, so that a server that is away is not asked a thousand times a second."""


class Worker:
    """What a workload is given.

    Attributes:
        number: from 0, within the crew.
        dice: seeded by the run, the trial, the worker and its life.
        history: to append to.
        system: what it locks with.
        ttl: seconds, of leases.
        trial: a name that no other trial has, for keys.
        folder: where the histories are.
    """

    def __init__(self, orders: dict[str, Any]) -> None:
        self.number: int = orders["number"]
        self.trial: str = orders["trial"]
        self.ttl: float = orders["ttl"]
        self.size: int = orders["size"]
        self.dice = random.Random(f"{orders['seed']} {self.number} {orders['life']}")
        self.folder = Path(orders["folder"])
        file = Path(self.folder, f"worker-{self.number}-{orders['life']}.jsonl")
        self.history = Writer(file, f"{self.number}.{orders['life']}")
        self.system = importlib.import_module(f"tests.faults.systems.{orders['system']}")
        self.workload = importlib.import_module(f"tests.faults.workloads.{orders['workload']}")
        self.until: float = orders["until"]
        self.state: dict[str, Any] = {}

    def think(self, longest: float = 0.002) -> None:
        """Widen the gap between reading and writing, as a user's own code does."""
        time.sleep(self.dice.uniform(0, longest))


def run(orders: dict[str, Any]) -> NoReturn:
    """Run in a forked child, to its end; what it could not handle stands in a file beside."""
    status = 0
    try:
        _run(orders)
    except BaseException:  # noqa: BLE001 - it must not return into the crew's loop
        Path(orders["folder"], f"error-{os.getpid()}.txt").write_text(traceback.format_exc())
        status = 1
    finally:
        os._exit(status)


def _run(orders: dict[str, Any]) -> None:
    for name, value in orders["env"].items():
        os.environ[name] = value
    mend_sleep()
    for name in connections:
        connections[name].settings_dict.update(orders["database"])
    worker = Worker(orders)
    acquire._PATIENCE, acquire._SIGN = _PATIENCE, _PATIENCE / 3
    if orders["mutation"]:
        from tests.faults import mutations

        getattr(mutations, orders["mutation"])()
    if orders["faults"]:
        dice = random.Random(f"{orders['seed']} {worker.number} {orders['life']} boundaries")
        Boundaries(
            dice, worker.history, orders["faults"], tuple(orders["pauses"]),
            orders["server"], orders["channel"],
        ).install()  # fmt: skip
    with backends.installed(orders["backend"], *connections):
        backends.Tenants.schema = TENANT
        _take_turns(worker)
        connections.close_all()
    _wait_for_threads(worker)


def _take_turns(worker: Worker) -> None:
    stopping = threading.Event()
    errors = (Error, DblockError, OSError, *worker.system.ERRORS)
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    while now() < worker.until and not stopping.is_set():
        try:
            _note_backend(worker)
            worker.workload.turn(worker)
        except errors:  # the history has it
            for connection in connections.all(initialized_only=True):
                with suppress(Error):
                    connection.close()
            time.sleep(worker.dice.uniform(0, _BREAK))


def _note_backend(worker: Worker) -> None:
    """Note once what the connection is, and whether statements may travel in one message.

    Before the first turn: a worker may be killed in it, or each turn end in an error, after
    operations that succeeded.
    """
    connection = connections["default"]
    if "noted" not in worker.state:
        connection.ensure_connection()
        fast = fast_driver(connection) is not None
        worker.history.note("backend", backend=type(connection).__name__, fast=fast)
        worker.state["noted"] = True


def _wait_for_threads(worker: Worker) -> None:
    """The heartbeat ends a moment after the last lease; a thread that stays is a leak."""
    deadline = now() + 3 + worker.ttl
    while now() < deadline and threading.active_count() > 1:
        time.sleep(0.02)
    left = [
        f"{thread.name} in {_where(thread)}"
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    ]
    worker.history.note("end", threads=left)


def _where(thread: threading.Thread) -> str:
    """Return the last calls of a thread, the innermost last."""
    frame = sys._current_frames().get(thread.ident or 0)
    calls = traceback.extract_stack(frame)[-8:] if frame else []
    return " > ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls)
