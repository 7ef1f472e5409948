"""A bad line: requests and answers are lost, COMMIT's above all; or nothing comes for a time."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from tests.faults.stage import Stage

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.proxy", str(stage.server.port), stage.trial.seed],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        port = int(process.stdout.readline())

        def listen() -> None:
            for line in process.stdout:
                stage.fault(line.strip())

        listening = Thread(target=listen)
        listening.start()
        yield {"HOST": "127.0.0.1", "PORT": port}
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(10)
        listening.join(10)
        process.stdout.close()


def torment(stage: Stage) -> None:
    """The line does it all."""
