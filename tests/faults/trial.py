"""One trial, from its rows to its verdict."""

import importlib
import json
import os
import shutil
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from time import sleep
from typing import Any

from tests.faults import aftermath, around, history
from tests.faults.checkers import Violation
from tests.faults.clock import now
from tests.faults.history import OK, Operation
from tests.faults.plan import Trial
from tests.faults.services import Services, url
from tests.faults.stage import Over, Stage, lives
from tests.faults.wake import Wakes
from tests.helpers.backends import BACKENDS

_PATIENCE = 20
"""Seconds after which a worker that should have ended hangs."""

_TORMENT_PATIENCE = 180
"""Seconds after which a nemesis that should have ended hangs."""

_TOLD = 10
"""Errors of workers that a result tells, at most; the folder of the trial has them all."""

_LIVES = 60
"""How often a worker is started again, at most."""


class Running:
    """The workers of one trial."""

    def __init__(self, trial: Trial, services: Services, folder: Path) -> None:
        self.trial = trial
        self.nemesis: Any = importlib.import_module(f"tests.faults.nemeses.{trial.nemesis}")
        self.workload: Any = importlib.import_module(f"tests.faults.workloads.{trial.workload}")
        self.services = services
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.stage = Stage(trial, services, services.postgres(trial.version), folder)
        self.lives: Counter[int] = Counter()
        self.ordered: dict[str, int] = {}
        self.wakes = Wakes(services.messages, self.stage.fault)

    def run(self) -> dict[str, Any]:
        """Run it; return what became of it."""
        started = now()
        try:
            return self._with_site() if self.trial.workload == "shop" else self._with_crew()
        except Exception:  # noqa: BLE001 - the run goes on, and fails
            return self._result([], [], [traceback.format_exc()], started)
        finally:
            self.stage.close()

    def _with_site(self) -> dict[str, Any]:
        """Run it with a server and its clients in place of a crew."""
        started = now()
        stage = self.stage
        stage.prepare(stage.server)
        errors: list[str] = []
        with self.workload.running(stage) as address:
            stage.until = now() + self.trial.seconds
            with self._tormented(errors):
                self.workload.drive(stage, address)
        operations = history.read(self.folder)
        return self._result(
            operations, self.workload.judge_books(stage, operations), errors, started
        )

    def _with_crew(self) -> dict[str, Any]:
        started = now()
        stage = self.stage
        setting = getattr(self.nemesis, "around", _directly)
        if not getattr(self.nemesis, "OWN_SERVER", False):
            stage.prepare(stage.server)
        faked = getattr(self.nemesis, "PRELOAD", False)
        with setting(stage) as database:
            self.crew = self.services.crew(faked=faked)  # its start takes a while
            stage.until = now() + self.trial.seconds
            try:
                errors = self._torment(database)
                hung = self._wait()
            finally:
                for pid in stage.pids.values():
                    _kill(pid)
            return self._verdict(hung, errors, started)

    def _torment(self, database: dict[str, Any]) -> list[str]:
        errors: list[str] = []
        for number in range(self.trial.workers):
            self._start(number, database)
        with self._tormented(errors) as thread:
            patience = self.stage.until + _TORMENT_PATIENCE
            while now() < self.stage.until or (thread.is_alive() and now() < patience):
                self.wakes.look()
                if now() < self.stage.until - 0.3:
                    self._replace_the_dead(database)
                sleep(0.005)
        return errors

    @contextmanager
    def _tormented(self, errors: list[str]) -> Iterator[threading.Thread]:
        """Run the nemesis beside; it has ended before anything is taken down that it works on."""
        target = _collecting(self.nemesis.torment, self.stage, errors)
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        try:
            yield thread
            thread.join(max(0, self.stage.until + _TORMENT_PATIENCE - now()))
        finally:
            if thread.is_alive():
                self.stage.end()
                thread.join(_TORMENT_PATIENCE)
                errors.append("the nemesis did not end by itself")

    def _start(self, number: int, database: dict[str, Any]) -> None:
        trial, nemesis = self.trial, self.nemesis
        environment = getattr(nemesis, "environment", lambda *_: {})
        orders = {
            "number": number,
            "life": self.lives[number],
            "trial": trial.name,
            "seed": trial.seed,
            "system": trial.system,
            "workload": trial.workload,
            "mutation": trial.mutation,
            "backend": trial.backend,
            "ttl": trial.ttl,
            "size": 12,
            "until": self.stage.until,
            "folder": str(self.folder),
            "database": database,
            "server": url(self.stage.server),
            "faults": getattr(nemesis, "FAULTS", {}),
            "pauses": nemesis.pauses(trial.ttl) if hasattr(nemesis, "pauses") else (0, 0),
            "channel": self.services.channel,
            "env": environment(self.stage, number, self.lives[number]),
        }
        self.stage.pids[number] = self.crew.start(json.dumps(orders))
        self.lives[number] += 1

    def _replace_the_dead(self, database: dict[str, Any]) -> None:
        for number, pid in list(self.stage.pids.items()):
            if not lives(pid) and self.lives[number] < _LIVES:
                self._start(number, database)

    def _wait(self) -> list[str]:
        """Wait for the workers to end by themselves; return those that did not."""
        deadline = now() + _PATIENCE
        while now() < deadline and self.stage.busy():
            self.wakes.look()
            sleep(0.005)
        return [f"worker {number}" for number, pid in self.stage.pids.items() if lives(pid)]

    def _verdict(self, hung: list[str], errors: list[str], started: float) -> dict[str, Any]:
        trial, stage = self.trial, self.stage
        operations = history.read(self.folder)
        errors += self._not_as_planned(operations)
        with stage.connect() as database:
            found: list[Violation] = self.workload.judge(database, trial.name, operations)
            if hasattr(self.workload, "ordered"):
                verdict = self.workload.ordered(operations)
                found += verdict.violations
                self.ordered = verdict.counts
            found += aftermath.judge(
                database, trial, history.notes(self.folder), hung,
                clock=not getattr(self.nemesis, "CLOCK", False),
                others=getattr(self.nemesis, "OTHERS", None),
            )  # fmt: skip
        return self._result(operations, found, errors, started)

    def _not_as_planned(self, operations: list[Operation]) -> list[str]:
        """Say where a worker's connection was not the one that the trial is about."""
        planned = {
            "backend": BACKENDS[self.trial.backend].__name__, "fast": self.trial.backend == "django"
        }  # fmt: skip
        noted = [
            {name: note[name] for name in planned}
            for note in history.notes(self.folder)
            if note["kind"] == "backend"
        ]
        if not noted and any(operation.outcome == OK for operation in operations):
            return ["no worker has said what its connection is"]
        return [f"{note} in place of {planned}" for note in noted if note != planned]

    def _result(
        self, operations: list[Operation], found: list[Violation], errors: list[str], started: float
    ) -> dict[str, Any]:
        told = [file.read_text() for file in sorted(self.folder.glob("error-*.txt"))]
        errors += dict.fromkeys(told[:_TOLD])  # sixty lives may end in the same way
        notes = Counter(note["kind"] for note in history.notes(self.folder))
        faults = [json.loads(line) for line in (self.folder / "faults.jsonl").open()]
        return {
            **broken(self.trial, errors, started),
            "operations": len(operations),
            "outcomes": dict(Counter(operation.outcome for operation in operations)),
            "faults": dict(Counter(fault["kind"] for fault in faults if fault["kind"] != "back")),
            "takeovers": notes["takeover"] if hasattr(self.workload, "TAKEN_OVER") else None,
            "violations": [violation._asdict() for violation in found],
            "ordered": self.ordered,
            "around": around.around(operations, faults, self.stage.until),
        }


def broken(trial: Trial, errors: list[str], started: float) -> dict[str, Any]:
    """The result of a trial of which nothing is known but its errors."""
    return {
        **asdict(trial), "operations": 0, "outcomes": {}, "faults": {}, "violations": [],
        "errors": errors, "ordered": {}, "around": {}, "took": round(now() - started, 2),
    }  # fmt: skip


@contextmanager
def _directly(stage: Stage) -> Iterator[dict[str, Any]]:
    yield {"HOST": "127.0.0.1", "PORT": stage.server.port}


def _collecting(torment: Callable[[Stage], None], stage: Stage, errors: list[str]) -> Any:
    def run() -> None:
        try:
            torment(stage)
        except Over:
            pass
        except Exception as error:  # noqa: BLE001 - told in the report; the trial goes on
            errors.append(f"the nemesis: {error!r}")

    return run


def _kill(pid: int) -> None:
    if lives(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
