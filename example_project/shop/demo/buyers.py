"""One process of buyers, each of whom buys one item; see ``crowd.py``."""

import json
from http.client import HTTPConnection
from typing import Any

from shop.demo import crowd


def buy(connection: HTTPConnection, sku: str, buyer: str) -> dict[str, Any]:
    body = json.dumps({"sku": sku, "quantity": 1, "buyer": buyer})
    connection.request("POST", "/api/purchases/", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    return {"status": response.status, "waited": crowd.waited(response)}


if __name__ == "__main__":
    crowd.main(buy)
