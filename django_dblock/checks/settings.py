"""System checks of mistakes that would make the locks useless.

``dblock.E001``, ``E002``, ``W001`` and ``W005`` read the settings. ``E003``, ``E004`` and ``W002``
to ``W004`` query the server, so they run only in ``migrate`` and in ``check
--database ALIAS``.
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, Error, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model
from psycopg import IsolationLevel

from django_dblock.conf import Conf, conf
from django_dblock.core.connection import fetch
from django_dblock.sql import doctor as sql

TENANT_PACKAGES = frozenset(
    {
        "django_multitenant",
        "django_pgschemas",
        "django_tenants",
        "tenant_schemas",
        "tenant_users",
    }
)
"""The top packages of apps that put several tenants into one database."""


def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Find a wrong value (E002), engine (E001) or isolation (W001), and W005."""
    wrong = [
        checks.Error(str(error), id="dblock.E002", hint="See the settings page of the docs.")
        for error in _wrong_settings()
    ]
    if wrong:
        return list(wrong)
    connection = _connection()
    if connection.vendor != "postgresql":
        return [
            checks.Error(
                f"django_dblock locks on database {connection.alias!r}, which is "
                f"{connection.display_name}, not PostgreSQL.",
                id="dblock.E001",
                hint=_postgresql_hint(),
            )
        ]
    return [*_configured_isolation(connection), *_inseparable_tenants()]


def _postgresql_hint() -> str:
    others = [alias for alias in connections if connections[alias].vendor == "postgresql"]
    if others:
        return f"Set DBLOCK_DATABASE = {others[0]!r}, the alias of a PostgreSQL database."
    return (
        'Use PostgreSQL for this project, in development and tests too: "ENGINE": '
        '"django.db.backends.postgresql" in DATABASES. The locks have no other implementation. '
        "If DATABASES is a placeholder where nothing is locked (collectstatic in an image's "
        "build), add 'dblock.E001' to SILENCED_SYSTEM_CHECKS there."
    )


def _configured_isolation(connection: BaseDatabaseWrapper) -> Iterator[checks.CheckMessage]:
    level = connection.settings_dict["OPTIONS"].get("isolation_level")
    try:
        name = None if level is None else IsolationLevel(level).name  # Django takes the number, too
    except ValueError:
        return  # Django raises when it connects
    yield from _snapshot_isolation("dblock.W001", connection, name)


def _inseparable_tenants() -> Iterator[checks.CheckMessage]:
    installed = [app for app in settings.INSTALLED_APPS if app.partition(".")[0] in TENANT_PACKAGES]
    if installed and not callable(conf.namespace_source):
        yield checks.Warning(
            f"{installed[0]!r} is installed, and the keys of all tenants are the same: "
            f"DBLOCK_NAMESPACE is {conf.namespace_source!r} for each of them.",
            id="dblock.W005",
            hint="Set DBLOCK_NAMESPACE to a callable, or its dotted path, that returns the name of "
            "the current tenant.",
        )


def check_server(*, databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Ask the server whether it is the primary (W002), PostgreSQL (E003), and how it runs."""
    if any(_wrong_settings()):
        return []
    connection = _connection()
    if connection.vendor != "postgresql" or connection.alias not in (databases or ()):
        return []
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(sql.SERVER)
            version, in_recovery, isolation = cursor.fetchone()
    except Error as error:
        if "statement pooling" not in str(error):  # PgBouncer's words, which are never translated
            raise
        connection.close()
        return [
            checks.Error(
                f"Database {connection.alias!r} is behind a PgBouncer with pool_mode = statement, "
                f"which refuses transactions; a lock ends with its transaction.",
                id="dblock.E004",
                hint="Set pool_mode = transaction there.",
            )
        ]
    found: list[checks.CheckMessage] = []
    if "Cockroach" in version:
        found.append(
            checks.Error(
                f"Database {connection.alias!r} is CockroachDB, whose advisory locks do nothing "
                f"before 26.3, and are not released by ROLLBACK TO SAVEPOINT from 26.3 on.",
                id="dblock.E003",
                hint="Set DBLOCK_DATABASE to the alias of a PostgreSQL database.",
            )
        )
    if in_recovery:
        found.append(
            checks.Warning(
                f"Database {connection.alias!r} is a standby: locks there are refused.",
                id="dblock.W002",
                hint="Set DBLOCK_DATABASE to the alias of the primary.",
            )
        )
    found.extend(_snapshot_isolation("dblock.W003", connection, isolation))
    return found


def check_tables(*, databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Find tables that don't exist (W004); silent in ``migrate``, which is about to make them."""
    if any(_wrong_settings()):
        return []
    from django_dblock.models import FencedLock, FencedTicket, IdempotencyKey, LatchPart

    found: list[checks.CheckMessage] = []
    for alias in databases or ():
        models = [
            model
            for model in (FencedLock, FencedTicket, IdempotencyKey, LatchPart)
            if alias == (conf.database or router.db_for_write(model))
        ]
        if (
            connections[alias].vendor == "postgresql"
            and (missing := _missing(alias, models))
            and not _is_called_by_migrate()
        ):
            found.append(
                checks.Warning(
                    f"Database {alias!r} has no table {', '.join(missing)}.",
                    id="dblock.W004",
                    hint=f"Run 'manage.py migrate django_dblock --database {alias}'. If a router "
                    f"excludes the table, make allow_migrate() and db_for_write() agree.",
                )
            )
    return found


def _is_called_by_migrate() -> bool:
    # Django passes a check the databases, but not the command. Tenant packages subclass Command.
    module = sys.modules.get("django.core.management.commands.migrate")
    frame = inspect.currentframe() if module else None
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), module.Command):  # type: ignore[union-attr]
            return True
        frame = frame.f_back
    return False


def _missing(alias: str, models: Sequence[type[Model]]) -> list[str]:
    names = [model._meta.db_table for model in models]  # noqa: SLF001 - Django's
    return [name for (name,) in fetch(connections[alias], sql.MISSING_TABLES, {"names": names})]


def _connection() -> BaseDatabaseWrapper:
    return connections[conf.database or DEFAULT_DB_ALIAS]


def _wrong_settings() -> Iterator[ImproperlyConfigured]:
    for name, value in vars(Conf).items():
        if isinstance(value, cached_property):
            try:
                getattr(conf, name)
            except ImproperlyConfigured as error:
                yield error


def _snapshot_isolation(
    number: str, connection: BaseDatabaseWrapper, level: str | None
) -> Iterator[checks.CheckMessage]:
    if level is None or conf.allow_snapshot_isolation:
        return
    shown = level.upper().replace("_", " ")
    if shown.startswith("READ "):
        return
    yield checks.Warning(
        f"Transactions on database {connection.alias!r} run at {shown} by default, where "
        f"advisory_lock() refuses: what is read under the lock can be older than the lock.",
        id=number,
        hint="Use READ COMMITTED there; or set DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True if every "
        "lock is its transaction's first statement and serialization failures are retried.",
    )
