"""One process of payers; see ``crowd.py``.

Each pays one order, as the program of an impatient buyer behind a bad line would: it sends the same
payment one to five times at once, and each of these again until it has an answer. What they visit
is a file with the orders: by payer, the reference and the amount.
"""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Barrier
from typing import Any

from shop.demo import crowd

MOST_COPIES = 5
PATIENCE = 60.0
PAID, TRY_AGAIN = 201, {409, 500, 502, 503}
PAID_ALREADY = b"Paid already"  # a 409, too, but nothing to wait for


def pay(connection: HTTPConnection, orders: str, payer: str) -> dict[str, Any]:
    order = _orders(orders)[payer]
    address = f"/api/orders/{order['reference']}/payments/"
    body = json.dumps({"amount": order["amount"]})
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"{payer}-once"}
    copies = random.Random(payer).randint(1, MOST_COPIES)
    together = Barrier(copies)

    def one(_: int) -> tuple[int, bytes, int]:
        with closing(HTTPConnection(connection.host, connection.port, crowd.TIMEOUT)) as line:
            together.wait()
            return _until_answered(line, address, body, headers)

    with ThreadPoolExecutor(copies) as pool:
        answers = list(pool.map(one, range(copies)))
    paid = all(status == PAID or PAID_ALREADY in content for status, content, _ in answers)
    return {
        "status": max(status for status, _, _ in answers),
        "word": "paid" if paid else "failed",
        "tries": sum(tries for _, _, tries in answers),
        "copies": copies,
        "different": len({content for _, content, _ in answers}),
    }


def _until_answered(
    line: HTTPConnection, address: str, body: str, headers: dict[str, str]
) -> tuple[int, bytes, int]:
    """Send it again and again; return the answer's status and content, and the number of tries."""
    tries, over = 0, time.monotonic() + PATIENCE
    while True:
        tries += 1
        try:
            line.request("POST", address, body, headers)
            response = line.getresponse()
            status, content = response.status, response.read()
        except (OSError, HTTPException):  # lost, one way or the other; or its worker was killed
            line.close()
            status, content = 0, b""
        again = status in TRY_AGAIN and PAID_ALREADY not in content
        if (status and not again) or time.monotonic() > over:
            return status, content, tries
        time.sleep(random.uniform(0.5, 1) * min(0.6, 0.1 * 2**tries))


@cache
def _orders(file: str) -> dict[str, dict[str, str]]:
    return json.loads(Path(file).read_text())


if __name__ == "__main__":
    crowd.main(pay)
