"""Find out whether a pooler lends one server connection to several clients in turn."""

import select
from typing import Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.sql import doctor as sql

_PATIENCE = 5
"""Seconds; a pool that has no connection left would make a second client wait for minutes."""

_LOOKS = 3


def is_shared(connection: BaseDatabaseWrapper) -> bool | None:
    """Whether two clients were seen on one server connection, or one client on two.

    Then it is lent for a transaction at a time. If neither is seen, it belongs to the session, as
    far as three looks can tell. Opens a second connection for a moment.

    Returns:
        None if the pooler had no server connection for a second client, or ours is in a
        transaction, where it always keeps the same one.
    """
    if connection.in_atomic_block:
        return None
    parameters = {**connection.get_connection_params(), "connect_timeout": _PATIENCE}
    ours, theirs = set(), set()
    try:
        with psycopg.connect(**parameters, autocommit=True) as other:
            for _ in range(_LOOKS):
                with connection.cursor() as cursor:
                    cursor.execute(sql.BACKEND)
                    ours.update(cursor.fetchone())
                theirs.add(_backend(other))
    except (psycopg.OperationalError, TimeoutError):
        return None
    return bool(ours & theirs) or len(ours) > 1 or len(theirs) > 1


def _backend(other: "psycopg.Connection[Any]") -> int:
    """Ask by the driver's own means, which can stop waiting."""
    driver = other.pgconn
    driver.send_query(sql.BACKEND.encode())
    if not select.select([driver.socket], [], [], _PATIENCE)[0]:
        raise TimeoutError
    found = driver.get_result()
    driver.get_result()  # the end of the answer
    if found is None or (value := found.get_value(0, 0)) is None:
        raise psycopg.OperationalError(driver.error_message.decode(errors="replace"))
    return int(value)
