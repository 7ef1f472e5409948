"""A database of the demo's own, on whatever server DATABASE_URL names.

Each run adds products and orders of its own, deletes those products in the end, and empties the
outbox for the last round. Nobody wants that in the database that the demo was given.
"""

import os
from urllib.parse import urlsplit, urlunsplit

from django.core.management.base import CommandError
from django.db import Error, connection

NAME = "dblock_demo"
MARK = "Made by the demo of django_dblock, which only adds to it. Drop it whenever you like."

_MARK_OF = """
SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s
"""
_CREATE = "CREATE DATABASE dblock_demo"
_SET_MARK = f"COMMENT ON DATABASE dblock_demo IS '{MARK}'"


def use_own_database() -> str:
    """Move this process to the demo's database, made if need be, and return its DATABASE_URL."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(_MARK_OF, [NAME])
            found = cursor.fetchone()
            if found is None:
                cursor.execute(_CREATE)
                cursor.execute(_SET_MARK)
    except Error as error:
        raise CommandError(
            f"The demo makes a database {NAME!r} of its own on the server of DATABASE_URL, and "
            f"could not: {error}\nName a role that may create one, or unset DATABASE_URL: then an "
            f"embedded PostgreSQL is started."
        ) from error
    if found is not None and found[0] != MARK:
        raise CommandError(
            f"The server of DATABASE_URL has a database {NAME!r} that is not the demo's. "
            f"It was left alone; rename it, or unset DATABASE_URL."
        )
    connection.close()
    connection.settings_dict["NAME"] = NAME  # as Django's test runner does
    return address_of(NAME, os.environ["DATABASE_URL"])


def address_of(name: str, url: str) -> str:
    """Return the address of another database on the same server."""
    parts = urlsplit(url)
    folder, _, _ = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=f"{folder}/{name}"))


def address_as(application: str, url: str) -> str:
    """Return the address with a name under which its user's connections can be found."""
    return f"{url}{'&' if urlsplit(url).query else '?'}application_name={application}"
