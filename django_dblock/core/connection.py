"""Which connection a lock is taken on: always the primary's, always PostgreSQL's."""

import os
from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.conf import conf
from django_dblock.exceptions import UnsupportedDatabase


def alias_of(using: str | None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else ``default``."""
    return using or conf.database or DEFAULT_DB_ALIAS


def connection_for(using: str | None) -> BaseDatabaseWrapper:
    """Return the connection of ``using``, else of ``DBLOCK_DATABASE``, else of ``default``.

    Raises:
        UnsupportedDatabase: the engine is not PostgreSQL. Sends nothing.
        ConnectionDoesNotExist: there is no such alias.
    """
    connection = connections[alias_of(using)]
    if connection.vendor != "postgresql":
        raise UnsupportedDatabase(using=connection.alias, engine=connection.display_name)
    return connection


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether a transaction is open that somebody else will end. Sends nothing."""
    return connection.in_atomic_block or not connection.get_autocommit()


def in_callers_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether what is written now is not committed at once, as ``atomic(durable=True)`` asks it.

    The transaction that TestCase puts around a test does not count, as there. Sends nothing.
    """
    blocks: list[Any] = connection.atomic_blocks
    if blocks and blocks[-1]._from_testcase:  # noqa: SLF001 - Django's own exemption
        return False
    return in_transaction(connection)


# What a forked child does first. A leaf.


def after_fork_in_child(act: Callable[[], object]) -> None:
    """Do this in every child that is forked from now on; on Windows there is none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)
