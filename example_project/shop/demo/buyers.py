"""One process of buyers: ``python -m shop.demo.buyers ADDRESS SKU NAME COUNT THREADS``.

Standard library only; it knows the shop by its HTTP alone. Says ``ready``, waits for a line, then
buys, each buyer one item, and writes what each was answered as one line of JSON.
"""

import http.client
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import lifeline

TIMEOUT = 60.0


def main() -> None:
    address, sku, name, count, threads = sys.argv[1:]
    _say("ready")
    if not os.read(0, 1):
        return  # the demo was ended before it began
    lifeline.hold_on()

    def buyer(number: int) -> None:
        _say(json.dumps(_buy(address, sku, f"{name}-{number}")))

    with ThreadPoolExecutor(int(threads)) as pool:
        for done in [pool.submit(buyer, number) for number in range(int(count))]:
            done.result()


def _say(line: str) -> None:
    # One write below PIPE_BUF is atomic, so all processes share one pipe without mixing lines.
    os.write(1, f"{line}\n".encode())


def _buy(address: str, sku: str, buyer: str) -> dict[str, Any]:
    body = json.dumps({"sku": sku, "quantity": 1, "buyer": buyer})
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=TIMEOUT)
    started = time.perf_counter()
    waited = 0.0
    try:
        connection.request("POST", "/api/purchases/", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        status = response.status
        waited = float((response.getheader("Server-Timing") or "=0").rpartition("=")[2]) / 1000
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return {"status": status, "seconds": time.perf_counter() - started, "waited": waited}


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody listens any more: the demo was ended
        main()
