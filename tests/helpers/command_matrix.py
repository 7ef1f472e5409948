"""A program that runs ``manage.py`` commands in processes of their own, with one start of Django.

Reads cases from standard input and writes their results to the file named as its argument, both
JSON. Each case is a forked child with its own file descriptors, which ends as a command does:
through Python's own finalization, so that what that complains about is seen.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import django
from django.core.management import execute_from_command_line
from django.db import connections

LIMIT = 60
"""Seconds after which a child counts as hanging."""


def run(case: dict[str, Any], out: Path, err: Path) -> dict[str, Any] | None:
    """Fork, and return what the command printed and its status; None in the child at its end."""
    out.touch()
    if not (pid := os.fork()):
        _become(case, out, err)
        execute_from_command_line(["manage.py", "dblock", *case["arguments"]])
        return None
    _, status = os.waitpid(pid, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "out": out.read_text(encoding="utf-8", errors="replace"),
        "err": err.read_text(encoding="utf-8", errors="replace"),
    }


def _become(case: dict[str, Any], out: Path, err: Path) -> None:
    signal.alarm(LIMIT)
    if case.get("ends_by_signal"):
        shown = out if case["stdout"] in ("file", "ascii") else None
        threading.Thread(target=_terminate, args=(shown,), daemon=True).start()
    _redirect(err, 2)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    encoding = "ascii" if case["stdout"] == "ascii" else "utf-8"
    if case["stdout"] == "closed":
        os.close(1)
        sys.stdout = None
    else:
        if case["stdout"] == "broken":  # nobody reads, as after "| head"
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
            os.close(writer)
        else:
            _redirect(out, 1)
        sys.stdout = open(1, "w", encoding=encoding, errors="strict", closefd=False)  # noqa: SIM115
    for alias in connections:
        connections[alias].settings_dict.update(case["database"].get(alias, {}))


def _terminate(shown: Path | None) -> None:
    """Send SIGTERM when the command listens for it and has shown something where that is seen."""
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL or not (
        shown is None or shown.stat().st_size
    ):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def _redirect(path: Path, number: int) -> None:
    with path.open("wb") as file:
        os.dup2(file.fileno(), number)


def main() -> None:
    """Run all cases; in a child return, and end with it."""
    cases = json.load(sys.stdin)
    django.setup()
    results = []
    whole = Path(sys.argv[1])
    for number, case in enumerate(cases):
        result = run(case, whole.with_name(f"out-{number}"), whole.with_name(f"err-{number}"))
        if result is None:
            return
        results.append(result)
    whole.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
