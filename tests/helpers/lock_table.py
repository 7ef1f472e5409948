"""A server whose lock table is small, and is full."""

import psycopg
import pytest
from django.db import connections


@pytest.fixture
def small_lock_table(primary, monkeypatch):
    """The alias ``other`` leads to a server with a small lock table, filled by somebody else."""
    alias = connections["other"]
    alias.close()
    for name, value in {"HOST": "127.0.0.1", "PORT": primary.port, "NAME": "postgres"}.items():
        monkeypatch.setitem(alias.settings_dict, name, value)
    alias.ensure_connection()  # connecting takes locks, too
    yield alias
    alias.close()


@pytest.fixture
def full_lock_table(small_lock_table, primary):
    with psycopg.connect(primary.url, autocommit=True) as filling:
        number = 0
        filling.execute("BEGIN")
        with pytest.raises(psycopg.errors.OutOfMemory):
            while True:
                filling.execute("SAVEPOINT s")
                filling.execute(
                    "SELECT pg_advisory_xact_lock(n) FROM generate_series(%s::int, %s::int) AS n",
                    [number, number + 9],
                )
                filling.execute("RELEASE s")
                number += 10
        filling.execute("ROLLBACK TO s")
        for extra in range(10):  # the last places
            try:
                filling.execute("SAVEPOINT t")
                filling.execute("SELECT pg_advisory_xact_lock(%s::int)", [-1 - extra])
                filling.execute("RELEASE t")
            except psycopg.errors.OutOfMemory:
                filling.execute("ROLLBACK TO t")
        yield filling
