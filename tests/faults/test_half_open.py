"""Clients that vanish without a word: see docs/how-to/timeouts-and-outages.md.

A client in a network of its own holds locks; then the network is gone, and no packet says so. What
the server knows of it is what its settings make it ask for.
"""

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from tests.helpers import observe, servers

pytestmark = [pytest.mark.processes, pytest.mark.faults]

BOUND = 10
"""Seconds; what is measured is 2 to 5."""

ASKING = {
    "tcp_keepalives_idle": "2s",
    "tcp_keepalives_interval": "1s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "2s",
    "client_connection_check_interval": "1s",
}
IDLE, RUNNING, WRITING = "idle in transaction", "in a statement", "in the middle of its answer"
# Whose lock it is: the number, what it is at, what is set for it.
DEFAULTS = {1: (IDLE, {}), 2: (RUNNING, {}), 3: (WRITING, {})}
SET = {4: (IDLE, ASKING), 5: (RUNNING, ASKING), 6: (WRITING, ASKING)}
LIMITED = {7: (IDLE, {"idle_in_transaction_session_timeout": "5s"})}
LIMITED_17 = {
    8: (IDLE, {"transaction_timeout": "5s"}),
    9: (RUNNING, {"transaction_timeout": "5s"}),
}

CLIENT = """
import sys, psycopg
held = []
for case in sys.argv[2:]:
    number, state, options = case.split(";")
    connection = psycopg.connect(sys.argv[1], options=options, autocommit=True)
    connection.execute("BEGIN")
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [int(number)])
    if state == "in a statement":
        connection.pgconn.send_query(b"SELECT pg_sleep(600)")
    elif state == "in the middle of its answer":
        connection.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
    held.append(connection)
print("ready", flush=True)
sys.stdin.read()
"""


class Network(NamedTuple):
    """A pair of addresses, one here and one in a namespace."""

    name: str
    here: str
    there: str

    def cut(self) -> None:
        """Pull the plug on the other side: what is sent there is gone, and nobody says so."""
        ip("-n", self.name, "link", "set", f"{self.name}c", "down")


def ip(*words: str) -> str:
    program = servers.need("ip", "iproute2")
    return subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def network() -> Iterator[Network]:
    """A network namespace, if this user may make one, with a cable to it."""
    number = random.SystemRandom().randrange(1, 250)
    found = Network(f"dbl{os.getpid()}", f"198.18.{number}.1", f"198.18.{number}.2")
    host, client = f"{found.name}h", f"{found.name}c"
    try:
        ip("netns", "add", found.name)
        ip("link", "add", host, "type", "veth", "peer", "name", client, "netns", found.name)
    except subprocess.CalledProcessError as error:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", found.name)
        pytest.skip(f"no right to make a network: {error.stderr.strip()}")
    try:
        ip("address", "add", f"{found.here}/30", "dev", host)
        ip("link", "set", host, "up")
        ip("-n", found.name, "address", "add", f"{found.there}/30", "dev", client)
        ip("-n", found.name, "link", "set", client, "up")
        # Known for good: else the server's machine would soon say that there is no such host.
        address = ip("-n", found.name, "-br", "link", "show", client).split()[2]
        ip("neighbour", "replace", found.there, "lladdr", address, "dev", host, "nud", "permanent")
        yield found
    finally:
        ip("netns", "delete", found.name)


@pytest.fixture
def server(network):
    found = servers.throw_away(listen_addresses=f"127.0.0.1,{network.here}")
    with (found.folder / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {network.there}/32 trust\n")
    with psycopg.connect(found.url, autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
    yield found
    found.remove()


def test_the_settings_free_the_locks_of_a_client_that_vanished(network, server):
    """With the settings of the how-to in seconds; with the server's defaults not at all."""
    watching = psycopg.connect(server.url, autocommit=True)
    expected = {**SET, **LIMITED, **(LIMITED_17 if watching.info.server_version >= 170000 else {})}
    cases = {**DEFAULTS, **expected}
    words = [
        f"{number};{state};{' '.join(f'-c {name}={value}' for name, value in options.items())}"
        for number, (state, options) in cases.items()
    ]
    ip_program = servers.need("ip", "iproute2")
    command = [ip_program, "netns", "exec", network.name, sys.executable, "-c", CLIENT]
    reach = f"host={network.here} port={server.port} user=postgres dbname=postgres"
    client = subprocess.Popen(
        [*command, reach, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    freed: dict[int, float] = {}
    try:
        assert client.stdout.readline() == "ready\n"
        observe.until(lambda: stuck(watching) == {2, 3, 5, 6, 9} & set(cases), "all are at it")
        assert held(watching) == set(cases)
        network.cut()
        cut = time.monotonic()
        while (passed := time.monotonic() - cut) < BOUND:
            freed.update(dict.fromkeys(set(cases) - held(watching) - set(freed), passed))
            time.sleep(0.05)  # between two looks
        for number, (state, options) in cases.items():
            after = f"free after {freed[number]:.1f} s" if number in freed else "still held"
            print(f"{state}, {', '.join(options) or 'defaults'}: {after}")
        assert set(freed) == set(expected)
    finally:
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
        watching.close()


def test_the_how_to_gives_these_settings():
    page = Path(__file__).parents[2] / "docs/how-to/timeouts-and-outages.md"
    _, section = page.read_text().split("## Free the locks of a vanished client in seconds")
    given = re.findall(r"^ALTER ROLE shop SET (\w+) = '?(\w+)'?;$", section, re.MULTILINE)
    assert dict(given[: len(ASKING)]) == ASKING


def held(connection: psycopg.Connection) -> set[int]:
    rows = connection.execute("SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND granted")
    return {number for (number,) in rows}


def stuck(connection: psycopg.Connection) -> set[int]:
    """Whose statements run, or wait for the client to read."""
    rows = connection.execute(
        "SELECT objid FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE locktype = 'advisory' AND wait_event IN ('PgSleep', 'ClientWrite')"
    )
    return {number for (number,) in rows}
