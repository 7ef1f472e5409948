"""Histories: what each worker asked for, and what it was told, as lines of JSON.

An operation is a line when it begins, and a line when it ends: ``ok``, ``fail`` or ``unknown``.
Each line is one write to a file of the worker's own, so that a killed worker loses none. What has
no end in the file is unknown: nobody was told. *Fail* is said only where nothing can have been
committed: an error that comes while COMMIT is under way is ``unknown``.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.clock import now

OK, FAIL, UNKNOWN = "ok", "fail", "unknown"


@dataclass
class Operation:
    """One operation, as the checkers see it.

    Attributes:
        id: worker and number; what the operation commits carries it.
        act: what was asked for.
        began, ended: by the machine's monotonic clock; ``ended`` is None where nobody was told.
        outcome: ``ok``, ``fail`` or ``unknown``.
        data: what was asked, and what was answered.
    """

    id: str
    act: str
    began: float
    ended: float | None = None
    outcome: str = UNKNOWN
    data: dict[str, Any] = field(default_factory=dict)


class Open:
    """An operation that runs."""

    def __init__(self, number: str) -> None:
        self.id = number
        self.answer: dict[str, Any] = {}
        self.in_doubt = False

    def committing(self) -> None:
        """From here on an error says nothing about what was committed."""
        self.in_doubt = True


class Writer:
    """Appends to the history of one worker."""

    def __init__(self, file: Path, worker: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._worker = worker
        self._number = 0

    @contextmanager
    def operation(self, act: str, **asked: Any) -> Iterator[Open]:
        """Write its beginning and its end; an error goes on, and is judged by when it came."""
        self._number += 1
        found = Open(f"{self._worker}:{self._number}")
        self._line(found.id, "invoke", act=act, wall=time.time(), **asked)
        try:
            yield found
        except Exception as error:
            outcome = UNKNOWN if found.in_doubt else FAIL
            self._line(found.id, outcome, **found.answer, error=type(error).__name__)
            raise
        self._line(found.id, OK, **found.answer)

    def note(self, what: str, **more: Any) -> None:
        """Write down something that is no operation: a fault that this worker brought on itself."""
        self._line("", what, **more)

    def _line(self, number: str, kind: str, **more: Any) -> None:
        line = {"id": number, "kind": kind, "at": now(), **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(folder: Path) -> list[Operation]:
    """Return what the workers of one trial did, in the order of beginning."""
    found: dict[str, Operation] = {}
    for file in sorted(folder.glob("worker-*.jsonl")):
        for line in _lines(file):
            number, kind, at = line.pop("id"), line.pop("kind"), line.pop("at")
            if kind == "invoke":
                found[number] = Operation(number, line.pop("act"), at, data=line)
            elif number:
                operation = found[number]
                operation.ended, operation.outcome = at, kind
                operation.data |= line
    return sorted(found.values(), key=lambda operation: operation.began)


def asked(folder: Path, worker: int) -> list[str]:
    """Return the names that a worker has asked for so far, in all its lives."""
    files = folder.glob(f"worker-{worker}-*.jsonl")
    return [line["name"] for file in files for line in _lines(file) if line["kind"] == "invoke"]


def notes(folder: Path) -> list[dict[str, Any]]:
    """Return the faults that workers brought on themselves."""
    files = sorted(folder.glob("worker-*.jsonl"))
    return [line for file in files for line in _lines(file) if not line["id"]]


def _lines(file: Path) -> Iterable[dict[str, Any]]:
    for line in file.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a worker that was killed while it wrote
            continue
