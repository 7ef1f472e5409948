"""Waiters are served in the order of arrival."""

import pytest
from django.db import connection, transaction

from django_dblock import advisory_lock
from tests.helpers.processes import process

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]


def queue(channel, joined):
    connection.ensure_connection()
    channel.send(connection.connection.info.backend_pid)
    channel.receive()
    with transaction.atomic() if joined else advisory_lock("queue", timeout=30):
        if joined:
            with advisory_lock("queue", timeout=30):
                pass
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO app_counter (name, value) VALUES (pg_backend_pid()::text, 0)"
            )
            cursor.execute("SELECT max(id) FROM app_counter")
            return cursor.fetchone()[0]


@pytest.mark.parametrize("joined", [False, True])
def test_first_come_first_served(joined, hold_lock):
    busy = hold_lock("queue")
    with process(queue, joined) as a, process(queue, joined) as b, process(queue, joined) as c:
        waiters = [a, b, c]
        for place, waiter in enumerate(waiters, 1):
            waiter.receive()
            waiter.send("get in line")
            busy.until_waited_for(place)
        busy.release()
        places = [waiter.receive() for waiter in waiters]
    assert places == sorted(places)
