"""One PostgreSQL under Patroni, and the etcd that says who leads."""

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.needed import program
from tests.faults.stage import Stage
from tests.helpers.observe import until
from tests.helpers.servers import free_port


@dataclass
class Node:
    """A PostgreSQL under a Patroni of its own; ``port`` is PostgreSQL's."""

    name: str
    folder: Path
    port: int
    api: int
    process: "subprocess.Popen[bytes] | None" = None

    def asked(self, path: str) -> Any:
        """What its REST API answers, as far as JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.api}{path}", timeout=2) as answer:
            return json.load(answer)

    def role(self) -> str:
        with suppress(OSError, ValueError):
            return str(self.asked("/patroni")["role"])
        return ""

    def serves(self) -> bool:
        """Whether PostgreSQL is there; that Patroni has ended is an error, with its last words."""
        assert self.process
        if self.process.poll() is not None:
            words = (self.folder / "log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Patroni {self.name} has ended: {words}")
        return self.role() in {"primary", "master", "replica", "standby_leader"}

    def kill(self) -> None:
        """End Patroni and PostgreSQL together, as when a machine dies."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """End them and whatever else they have started; return when all is gone."""
        self._end(signal.SIGQUIT)  # PostgreSQL gives its shared memory back
        with suppress(AssertionError):
            until(lambda: not _inside(self.folder), "PostgreSQL's end", limit=10)
        for pid in _inside(self.folder):
            _kill(pid, signal.SIGKILL)
        assert self.process
        self.process.wait()
        until(lambda: not _inside(self.folder), "the end of what was killed", limit=10)

    def _end(self, how: int) -> None:
        """Patroni dies first, so that it starts nothing again."""
        assert self.process
        self.process.kill()
        self.process.wait()
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            if pid in _inside(self.folder):  # and not another's, which has the number now
                _kill(pid, how)


def _inside(folder: Path) -> list[int]:
    """The processes that live in the folder: all that Patroni starts do."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended meanwhile
            if link.readlink().is_relative_to(folder):
                found.append(int(link.parent.name))
    return found


def _kill(pid: int, how: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, how)


@contextmanager
def etcd(stage: Stage, folder: Path) -> Iterator[int]:
    """Run it; yield the port for its clients."""
    port, peers = free_port(), free_port()
    address, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    command = [
        "setpriv", "--pdeathsig=KILL", program("etcd"),
        "--data-dir", str(folder), "--listen-client-urls", address,
        "--advertise-client-urls", address, "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        stage.until_seen(lambda: _healthy(process, address, log), "etcd")
        yield port
    finally:
        process.kill()
        process.wait()


def _healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"etcd has ended: {log.read_text(errors='replace')[-2000:]}")
    with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
        return True
    return False


@contextmanager
def patroni(node: Node, etcd_port: int, binaries: Path, user: str | None) -> Iterator[None]:
    """Run it, and with it PostgreSQL; when that is there, ``node.serves()`` says."""
    node.folder.mkdir()
    (node.folder / "patroni.yml").write_text(json.dumps(_settings(node, etcd_port, binaries)))
    if user is not None:
        shutil.chown(node.folder, user, user)
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (node.folder / "log").open("wb") as log:
        node.process = subprocess.Popen(
            [*_as(user), program("patroni"), str(node.folder / "patroni.yml")],
            cwd=node.folder, stdout=log, stderr=log, start_new_session=True,
            env={**plain, "HOME": str(node.folder)},
        )  # fmt: skip
    try:
        yield
    finally:
        node.remove()


def _as(user: str | None) -> list[str]:
    """What runs Patroni as that user; and asks it to end where this process is killed.

    The Python that Patroni is installed in may be where only root looks, so it may look there, too.
    """
    found = ["setpriv", "--pdeathsig=TERM"]
    if user is not None:
        found += [
            f"--reuid={user}", f"--regid={user}", "--clear-groups",
            "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
        ]  # fmt: skip
    return found


def _settings(node: Node, etcd_port: int, binaries: Path) -> dict[str, Any]:
    """JSON, which is YAML, too."""
    trusted = [f"host {what} all 127.0.0.1/32 trust" for what in ("all", "replication")]
    return {
        "scope": "faults",
        "name": node.name,
        "restapi": {
            "listen": f"127.0.0.1:{node.api}",
            "connect_address": f"127.0.0.1:{node.api}",
        },
        "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
        "bootstrap": {
            # As quick as Patroni allows.
            "dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "synchronous_mode": True},
            "initdb": [{"encoding": "UTF8"}, "no-locale", "no-sync"],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{node.port}",
            "connect_address": f"127.0.0.1:{node.port}",
            "data_dir": str(node.folder / "data"),
            "bin_dir": str(binaries),
            "pg_hba": trusted,
            "pgpass": str(node.folder / "pgpass"),
            "authentication": {
                "superuser": {"username": "postgres"},
                "replication": {"username": "postgres"},
            },
            "parameters": {
                "unix_socket_directories": str(node.folder),
                "fsync": "off",
                "max_connections": 120,
                "deadlock_timeout": "100ms",
                "dynamic_shared_memory_type": "mmap",  # of a killed one nothing is left
            },
        },
    }
