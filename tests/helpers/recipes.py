"""The well-known recipes that are wrong, kept as negative twins: a test that passes with one of
these in place of our lock proves nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from django_dblock.keys import encode, key_id


@contextmanager
def no_lock(*_: Any) -> Iterator[None]:
    """Nothing at all."""
    yield


@contextmanager
def session_lock(*key: Any) -> Iterator[None]:
    """A session lock released at the end of the block: inside a transaction, before its COMMIT."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [key_id(encode(key))])
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [key_id(encode(key))])


@contextmanager
def ignored_answer(*key: Any) -> Iterator[None]:
    """A try whose False nobody looks at."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [key_id(encode(key))])
        yield
