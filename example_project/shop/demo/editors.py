"""One process of editors; see ``crowd.py``.

Each enters one delivery, as a program of the staff's would: it reads the product, adds one to the
stock and a line to the description, and sends both back with the ``ETag`` of what it has read. If
somebody else was faster, it reads again.
"""

import json
import os
import random
import time
from http.client import HTTPConnection
from typing import Any

from shop.demo import crowd

CONFLICT = 412
PATIENCE = 60.0


def edit(connection: HTTPConnection, sku: str, editor: str) -> dict[str, Any]:
    address = f"/api/products/{sku}/"
    token = os.urandom(16).hex()  # a browser's script sends back a cookie that it was given
    cookies = f"sessionid={os.environ['EDITORS_SESSION']}; csrftoken={token}"
    headers = {"Cookie": cookies, "X-CSRFToken": token, "Content-Type": "application/json"}
    tries, over = 0, time.monotonic() + PATIENCE
    while True:
        tries += 1
        connection.request("GET", address, headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return {"status": response.status, "tries": tries}
        product = json.loads(body)
        change = {
            "stock": product["stock"] + 1,
            "description": f"{product['description']}\n{editor}",
        }
        condition = {"If-Match": response.getheader("ETag")}
        connection.request("PATCH", address, json.dumps(change), headers | condition)
        response = connection.getresponse()
        response.read()
        if response.status != CONFLICT or time.monotonic() > over:
            return {"status": response.status, "tries": tries, "waited": crowd.waited(response)}
        time.sleep(random.uniform(0, min(0.3, 0.03 * 2**tries)))


if __name__ == "__main__":
    crowd.main(edit)
