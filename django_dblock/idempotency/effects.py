"""The savepoint under which a view runs: its effects can be undone, and the lock kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from django.db import Error, transaction
from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from django_dblock.sql import idempotency as sql

_NO_SAVEPOINT = "3B001"

Connection = Any
"""Django's wrapper; the types of what is read of it here stand in no stubs."""


class Effects:
    """``transaction.atomic()``, whose SAVEPOINT and RELEASE travel in messages of ours.

    Django's own would cost a round trip each. Its books are kept all the same: the savepoint stands
    in ``connection.savepoint_ids``, so a rollback to it takes the ``on_commit`` hooks of the view
    with it.

    Attributes:
        savepoint: the statement that makes it; to be sent before entering.
        release: the statement that ends it; :meth:`released` tells that it was sent.
    """

    def __init__(self, connection: Connection) -> None:
        connection.savepoint_state += 1  # as Django numbers its own
        self._name = f"dblock_{connection.savepoint_state}"
        self._connection = connection
        self._block = transaction.atomic(using=connection.alias, savepoint=False)
        self.savepoint = sql.SAVEPOINT.format(name=self._name)
        self.release = sql.RELEASE.format(name=self._name)

    def __enter__(self) -> Self:
        self._block.__enter__()
        self._connection.savepoint_ids[-1] = self._name
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._block.__exit__(kind, error, traceback)

    @property
    def broken(self) -> bool:
        """Whether an error was swallowed, so that nothing of this can be committed."""
        connection = self._connection
        driver = connection.connection
        return bool(
            connection.needs_rollback
            or connection.closed_in_transaction
            or driver is None
            or driver.info.transaction_status == TransactionStatus.INERROR
        )

    @contextmanager
    def still_there(self) -> Iterator[None]:
        """Put the release of the savepoint, which fails where it is gone, in plain words."""
        try:
            yield
        except Error as error:
            if getattr(error.__cause__, "sqlstate", None) != _NO_SAVEPOINT:
                raise
            raise TransactionManagementError(
                "The view has ended the transaction that it runs in, by COMMIT or ROLLBACK past "
                "Django, so its effects and its answer can't be committed together, and the lock "
                "was free meanwhile. The answer was not kept. Take such statements out; to undo a "
                "part, use transaction.atomic()."
            ) from error

    def undo(self) -> None:
        """Let leaving roll back to the savepoint, and go on after it."""
        self._connection.needs_rollback = True

    def released(self) -> None:
        """Let leaving send nothing: the savepoint is gone, or COMMIT comes next."""
        self._connection.savepoint_ids[-1] = None
