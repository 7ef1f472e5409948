"""What other packages put around Django's connection: ten-line stand-ins."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import psycopg
from django.db import connections
from django.db.backends.postgresql.base import CursorDebugWrapper, DatabaseWrapper


class Proxy:
    """A transparent object around the driver's connection or cursor, as APM agents have it."""

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "wrapped", wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.wrapped, name)

    def __enter__(self) -> Self:
        self.wrapped.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self.wrapped.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self.wrapped)


class ProxiedConnection(Proxy):
    """The same around psycopg's connection, with a proxy around each cursor, too."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return Proxy(self.wrapped.cursor(*args, **kwargs))


class Tenants(DatabaseWrapper):
    """A schema for each tenant, set by each cursor, as django-tenants and django-pgschemas do."""

    schema = "public"

    def _cursor(self, name: str | None = None) -> Any:
        cursor = super()._cursor(name)
        if name is None:
            with suppress(psycopg.Error):  # in a transaction that is aborted it can't be set
                cursor.cursor.execute(f'SET search_path = "{Tenants.schema}", public')
        return cursor


class OpaqueConnection(ProxiedConnection):
    """A proxy below which psycopg's connection can't be found."""

    def fileno(self) -> int:
        found: int = self.wrapped.fileno()
        return found


class Proxied(DatabaseWrapper):
    """A driver behind a proxy, as ddtrace, New Relic, Elastic APM and pools have it.

    Agents replace ``psycopg.connect``, so the package's own connections are proxies, too.
    """

    proxy: type[ProxiedConnection] = ProxiedConnection

    def _close(self) -> None:
        if self.connection is not None:
            with self.wrap_database_errors:
                self.connection.close()


class Opaque(Proxied):
    """A driver that is hidden in its proxy."""

    proxy = OpaqueConnection


class Rewritten(DatabaseWrapper):
    """An execute wrapper that adds a statement and reads the cursor on, as pghistory does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute_wrappers.append(_add_context)


class Logged(DatabaseWrapper):
    """Each cursor is a debug cursor of a class of its own."""

    @property
    def queries_logged(self) -> bool:
        return True

    def make_debug_cursor(self, cursor: Any) -> Any:
        return _DebugCursor(cursor, self)


class _DebugCursor(CursorDebugWrapper):
    pass


_NOT_REWRITTEN = ("select", "set ", "savepoint", "release", "rollback", "begin", "create", "alter")


def _add_context(execute: Any, query: Any, params: Any, many: bool, context: Any) -> Any:
    """Rewrite what writes, with a positional parameter more, and go to the last result."""
    cursor = context["cursor"]
    assert getattr(cursor, "name", None) is None or cursor.name
    _ = cursor.connection.info.transaction_status
    assert not isinstance(params, dict), "psycopg does not mix named and positional parameters"
    if many or query.lstrip().lower().startswith(_NOT_REWRITTEN):
        return execute(query, params, many, context)
    query = f"SELECT set_config('history.context', %s, true); {query}"
    result = execute(query, ["tests", *(params or ())], many, context)
    while result is not None and result.nextset():
        pass
    return result


BACKENDS: dict[str, type[DatabaseWrapper]] = {
    "django": DatabaseWrapper,
    "tenants": Tenants,
    "proxied": Proxied,
    "opaque": Opaque,
    "rewritten": Rewritten,
    "logged": Logged,
}


@contextmanager
def installed(name: str, *aliases: str) -> Iterator[type[DatabaseWrapper]]:
    """Let every connection to these aliases (``default``), of any thread, be of this backend."""
    aliases = aliases or ("default",)
    backend = BACKENDS[name]
    handler: Any = connections

    def create_connection(alias: str) -> Any:
        if alias not in aliases:
            return original(alias)
        return backend(handler.settings[alias], alias)

    def connect(*args: Any, **kwargs: Any) -> Any:
        driver = plain_connect(*args, **kwargs)
        return backend.proxy(driver) if issubclass(backend, Proxied) else driver

    original = handler.create_connection
    plain_connect = psycopg.connect
    before = {alias: connections[alias] for alias in aliases}
    handler.create_connection = create_connection
    for alias in aliases:
        before[alias].close()
        connections[alias] = create_connection(alias)
    psycopg.connect = connect  # type: ignore[assignment]
    try:
        yield backend
    finally:
        psycopg.connect = plain_connect  # type: ignore[method-assign]
        del handler.create_connection
        for alias in aliases:
            connections[alias].close()
            connections[alias] = before[alias]
        Tenants.schema = "public"
