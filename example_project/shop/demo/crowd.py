"""What the processes of a crowd have in common; each is ``python -m shop.demo.…``.

Standard library only: they know the shop by its HTTP alone. Such a process says ``ready``, waits
for a line, then makes its visits, and writes what became of each as one line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import lifeline

TIMEOUT = 60.0

Visit = Callable[[HTTPConnection, str, str], dict[str, Any]]
"""Of an article by somebody with a name; returns the ``status`` it ended with, and more."""


def main(visit: Visit) -> None:
    """Make the visits that the command line asks for: ADDRESS SKU NAME COUNT THREADS."""
    address, sku, name, count, threads = sys.argv[1:]
    with suppress(BrokenPipeError):  # nobody listens any more: the demo was ended
        _say("ready")
        if not os.read(0, 1):
            return  # the demo was ended before it began
        lifeline.hold_on()

        def one(number: int) -> None:
            _say(json.dumps(_timed(visit, address, sku, f"{name}-{number}")))

        with ThreadPoolExecutor(int(threads)) as pool:
            for done in [pool.submit(one, number) for number in range(int(count))]:
                done.result()


def waited(response: HTTPResponse) -> float:
    """How long the site says that it waited for locks, in seconds."""
    return float((response.getheader("Server-Timing") or "=0").rpartition("=")[2]) / 1000


def _timed(visit: Visit, address: str, sku: str, name: str) -> dict[str, Any]:
    started = time.perf_counter()
    with closing(HTTPConnection(urlsplit(address).netloc, timeout=TIMEOUT)) as connection:
        try:
            answer = visit(connection, sku, name)
        except (OSError, HTTPException):
            answer = {"status": 0}
    return {"seconds": time.perf_counter() - started, **answer}


def _say(line: str) -> None:
    # One write below PIPE_BUF is atomic, so all processes share one pipe without mixing lines.
    os.write(1, f"{line}\n".encode())
