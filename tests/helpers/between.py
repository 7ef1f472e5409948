"""What is done between two tests that commit: all tables are emptied, and nothing may be locked.

A new backend needs ten times as long for it as one that has seen the tables before: its caches are
empty. So one connection for each database is kept for the whole run. Between two uses it holds
nothing and waits for nothing.
"""

from typing import Any

import psycopg
from django.core.management import call_command
from django.db import connections
from django.test import TransactionTestCase

# Django empties all tables after each test that commits, and makes content types and permissions
# anew: a quarter of a second, for some rows. This empties the tables that have a file to speak of.
EMPTY = """
DO $$
DECLARE
    filled text;
BEGIN
    SELECT string_agg(oid::regclass::text, ', ') INTO filled FROM pg_class
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
    AND relname NOT IN ('django_migrations', 'django_content_type', 'auth_permission')
    AND pg_relation_size(oid) > 0;
    IF filled IS NOT NULL THEN
        EXECUTE 'TRUNCATE ' || filled || ' CASCADE';
    END IF;
END $$
"""

_kept: dict[str, psycopg.Connection[Any]] = {}


def conninfo(alias: str = "default", **changes: Any) -> str:
    """How a plain psycopg connection reaches the test database of an alias."""
    settings = connections[alias].settings_dict
    found = {
        "host": settings["HOST"],
        "port": settings["PORT"],
        "user": settings["USER"],
        "password": settings["PASSWORD"],
        "dbname": settings["NAME"],
        **changes,
    }
    return psycopg.conninfo.make_conninfo(**{name: value for name, value in found.items() if value})


def kept(alias: str = "default") -> psycopg.Connection[Any]:
    """The connection that is kept to the test database of an alias; anew if it was ended."""
    place = conninfo(alias)
    if place in _kept:
        try:
            _kept[place].execute("")
        except psycopg.OperationalError:
            _kept.pop(place).close()
    if place not in _kept:
        _kept[place] = psycopg.connect(place, autocommit=True, application_name="between tests")
    return _kept[place]


def close() -> None:
    """End the kept connections: a database that somebody is connected to can't be dropped."""
    while _kept:
        _kept.popitem()[1].close()


def empty(case: TransactionTestCase) -> None:
    """Empty the tables of the databases that a test may have written to."""
    for alias in case._databases_names(include_mirrors=False):
        if connections[alias].vendor == "postgresql":
            kept(alias).execute(EMPTY)
        else:
            call_command("flush", verbosity=0, interactive=False, database=alias)
