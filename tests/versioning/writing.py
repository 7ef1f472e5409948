"""Clients that write over HTTP, one after the other or all at once."""

import json
from contextlib import ExitStack

from django.test import Client

from django_dblock import etag
from tests.helpers import observe
from tests.helpers.processes import process


def send(path, product, tag=None, method="put", room="http", **changes):
    headers = {} if tag is None else {"If-Match": tag}
    return getattr(Client(), method)(
        f"/{room}/{path}/{getattr(product, 'pk', product)}/",
        json.dumps(changes or {"stock": 7}),
        "application/json",
        headers=headers,
    )


def put_once(_channel, room, path, pk, tag, stock):
    response = send(path, pk, tag, room=room, stock=stock, name=f"writer {stock}")
    return response.status_code, response.get("ETag")


LOCKED_OUT = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s
"""


def until_locked_out(observer, query, count):
    """Wait until so many clients wait for a row that somebody else has written."""
    observe.until(
        lambda: observer.execute(LOCKED_OUT, [query]).fetchone() == (count,),
        f"{count} waiting in {query}",
    )


def all_at_once(path, product, rival, observer, count=4, room="http"):
    """Let every client read the row and reach its UPDATE before any of them writes."""
    with ExitStack() as stack:
        with rival.transaction():
            rival.execute("SELECT FROM app_product WHERE id = %s FOR UPDATE", [product.pk])
            clients = [
                stack.enter_context(
                    process(put_once, room, path, product.pk, etag(product), 100 + each)
                )
                for each in range(count)
            ]
            until_locked_out(observer, "UPDATE%", count)
        return [client.receive() for client in clients]
