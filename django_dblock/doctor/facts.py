"""What was learnt about one database, before anybody judges it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Session:
    """Who we are there, and how we got there.

    Attributes:
        in_recovery: whether it is a standby.
        backend: the server process that answers us.
        role: the database role.
        database: the database's name.
        on_socket: whether the server is reached by a Unix socket.
        sees_all: whether other roles' sessions are shown to us whole.
        forbidden: the functions that lock which we may not call.
        clock_ahead: seconds by which the server's clock is ahead of ours.
        pooled: whether the driver was told another server process than the one that answers.
    """

    in_recovery: bool
    backend: int
    role: str
    database: str
    on_socket: bool
    sees_all: bool
    forbidden: tuple[str, ...]
    clock_ahead: float
    pooled: bool

    @property
    def grantee(self) -> str:
        """The role, as SQL has it."""
        return '"' + self.role.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class LockTable:
    """The table of locks that the whole server shares.

    Attributes:
        used: places taken.
        pid: the backend that has the most; None for a prepared transaction.
        most: how many locks it has.
        role: its role.
        application_name: its name.
    """

    used: int
    pid: int | None
    most: int
    role: str | None
    application_name: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """One of our tables.

    Attributes:
        name: as the model has it.
        exists: whether it is found by its name alone.
        elsewhere: the schema where one of that name is, if it is not.
        missing: columns of the model that it does not have.
        denied: what our role may not do with it.
        live: its rows, as counted last.
        dead: rows that are over and still there, likewise.
        pages: of 8 kB, likewise.
        vacuumed: seconds since it was; None for never.
    """

    name: str
    exists: bool
    elsewhere: str | None
    missing: tuple[str, ...]
    denied: tuple[str, ...]
    live: int
    dead: int
    pages: int
    vacuumed: float | None


@dataclass(frozen=True, slots=True)
class Pin:
    """Somebody who keeps dead rows from being removed.

    Attributes:
        kind: a transaction's ``backend``, a ``prepared`` transaction or a replication ``slot``.
        name: the backend's pid, the transaction's identifier or the slot's name.
        xids: how many transactions have begun since.
        seconds: for how long; None where hidden, or unknown.
        detail: whose it is, and in which state.
    """

    kind: Literal["backend", "prepared", "slot"]
    name: str
    xids: int
    seconds: float | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it.

    Attributes:
        alias: the database alias.
        version: what ``version()`` says.
        session: who we are there.
        settings: the server's settings as this session has them, in their base units.
        lock_table: how full it is.
        tables: ours, as they are in this database.
        elsewhere: those of them that are read and written through another alias, with that alias,
            where no ``using=`` is given.
        pins: who keeps dead rows, the oldest first.
        isolation: the level of a transaction of this alias; None if none could be begun.
        refused: what was said instead of beginning one.
        shared: whether a pooler lends one server connection to several clients; None if that could
            not be seen.
        server_side_cursors: whether Django uses them on this alias.
    """

    alias: str
    version: str
    session: Session
    settings: Mapping[str, str]
    lock_table: LockTable
    tables: tuple[Table, ...]
    elsewhere: Mapping[str, str]
    pins: tuple[Pin, ...]
    isolation: str | None
    refused: str
    shared: bool | None
    server_side_cursors: bool

    def number(self, setting: str) -> int:
        """Return a setting as a number; 0, which is no limit, where the server doesn't have it."""
        return int(self.settings.get(setting, 0))
