"""The database if DATABASE_URL names none: a PostgreSQL 18 in a folder beside the project.

Everybody who uses the folder holds a shared ``flock`` on it, which the system takes back even from
a process that is killed. Whoever can have it exclusively is alone: the first one in starts the
server, the last one out stops it.
"""

import atexit
import fcntl
import os
from pathlib import Path

import psycopg
from embedded_postgres import THROW_AWAY, Server
from psycopg import sql

FOLDER = Path(__file__).resolve().parents[2] / ".postgres-shop"
DATABASE = "shop"


def database_url() -> str:
    """Start the server if need be and return the address of the shop's database on it.

    The address goes into the environment as well, so that children (the reloader's server, WSGI
    workers) find a DATABASE_URL and never come here.
    """
    server = Server(Path(os.environ.get("SHOP_POSTGRES_FOLDER", FOLDER)), settings=THROW_AWAY)
    _use(server)
    os.environ["DATABASE_URL"] = server.database_url(DATABASE)
    return os.environ["DATABASE_URL"]


def _use(server: Server) -> None:
    server.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    users = os.open(server.folder, os.O_RDONLY)
    atexit.register(_leave, server, users, os.getpid())
    while True:
        if _alone(users):
            server.start()
            _create_database(server)
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while another process starts or stops it
        if server.is_running():
            return


def _leave(server: Server, users: int, owner: int) -> None:
    # A forked child runs its parent's exit handlers too.
    if os.getpid() == owner and _alone(users):
        server.stop()


def _alone(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _create_database(server: Server) -> None:
    create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE))
    with psycopg.connect(
        host=str(server.socket_folder), port=server.port, user="postgres", autocommit=True
    ) as connection:
        found = connection.execute(
            "SELECT FROM pg_database WHERE datname = %s", [DATABASE]
        ).fetchone()
        if found is None:
            connection.execute(create)
