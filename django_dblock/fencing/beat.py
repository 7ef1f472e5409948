"""One beat: renew many leases in one statement, on a connection of its own."""

from collections.abc import Generator, Iterable
from math import ceil
from typing import Any

from django.db import connections

from django_dblock.fencing.table import renewal_parameters, unreplicated
from django_dblock.fencing.trust import Trust, now
from django_dblock.sql import fencing as sql

_LOOK = 0.05
"""Seconds between two looks at the clock while the server is silent."""

_CONNECT = 2
"""The shortest time the driver can be given for connecting, in seconds."""


class Line:
    """The heartbeat's own connection to one database: never a caller's, and none of a pool's.

    A caller's may be in the middle of a transaction, and a pool may have none left to give.
    """

    def __init__(self, alias: str) -> None:
        self._wrapper = connections[alias].copy()
        settings = self._wrapper.settings_dict
        settings["AUTOCOMMIT"] = True
        options = settings["OPTIONS"]
        options.pop("pool", None)
        options["application_name"] = f"{options.get('application_name', '')} heartbeat".strip()

    def renew(self, trusts: Iterable[Trust], *, patience: float) -> list[Trust]:
        """Renew the leases; return those of which the table knows nothing any more.

        Args:
            trusts: the leases, all of this database.
            patience: seconds; a server that is silent for longer has failed.

        Raises:
            Exception: it failed, for all of them; nobody knows what was done.
        """
        wanted = {(trust.place.name, trust.place.slot, trust.token): trust for trust in trusts}
        leases = [(trust.place, trust.token, trust.ttl) for trust in wanted.values()]
        ttls = {key: trust.ttl for key, trust in wanted.items()}
        gone = []
        try:
            self._connect(patience)
            before = now()
            for name, slot, token, expires_at, ours in self._ask(leases, before + patience):
                trust = wanted[name, slot, token]
                if expires_at is not None:
                    trust.extend(before, ttls[name, slot, token], expires_at)
                elif not ours:
                    gone.append(trust)
        except BaseException:
            self.close()
            raise
        return gone

    def close(self) -> None:
        """Hang up. The next use calls again."""
        self._wrapper.close()

    def _connect(self, patience: float) -> None:
        options = self._wrapper.settings_dict["OPTIONS"]
        options["connect_timeout"] = max(_CONNECT, ceil(patience))
        self._wrapper.ensure_connection()

    def _ask(self, leases: list[Any], until: float) -> list[Any]:
        driver = self._wrapper.connection
        plain_wait = type(driver).wait

        def wait(generator: Any, interval: float = _LOOK, **more: Any) -> Any:
            return plain_wait(driver, _until(generator, until), min(interval, _LOOK), **more)

        driver.wait = wait
        try:
            with unreplicated(driver) as warnings, self._wrapper.cursor() as cursor:
                cursor.execute(sql.RENEW, renewal_parameters(leases))
                rows: list[Any] = cursor.fetchall()
        finally:
            del driver.wait
        if warnings:
            raise TimeoutError(warnings[0])
        return rows


def _until(generator: Generator[Any, Any, Any], until: float) -> Generator[Any, Any, Any]:
    """Drive the driver's own generator, which waits for the server for ever, up to a time."""
    try:
        state = next(generator)
        while True:
            ready = yield state
            if not ready and now() > until:
                raise TimeoutError("The server is silent.")
            state = generator.send(ready)
    except StopIteration as done:
        return done.value
