"""The shop's own tests under its own settings, and the database server that it brings along."""

import os
import subprocess
from pathlib import Path

import pytest
from embedded_postgres import Server

from tests.example.helpers import Run, Start, read_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600), pytest.mark.slow]

WAITING = """
import time
print("waiting", flush=True)
while True:
    time.sleep(0.05)  # a signal just before a sleep without an end would be missed
"""


def test_shop_passes_its_own_tests(run: Run):
    status, said = run("test", "--noinput", "--exclude-tag=browser", "--exclude-tag=api")
    assert status == 0, said


def test_api_conforms_to_its_openapi_description(run: Run):
    """Skipped without Schemathesis; with ``DBLOCK_TEST_EVERYTHING`` that is a failure."""
    status, said = run("test", "--noinput", "--tag=api")
    assert status == 0, said
    if "OK (skipped=" in said:
        pytest.skip("schemathesis is not installed")


def test_shop_works_in_a_real_browser(run: Run):
    """Skipped where there is none; with ``DBLOCK_TEST_EVERYTHING`` that is a failure."""
    status, said = run("test", "--noinput", "--tag=browser")
    assert status == 0, said
    if "OK (skipped=" in said:
        pytest.skip("chromium or chromium-driver is not installed")


@pytest.mark.parametrize("command", [("check",), ("makemigrations", "--check")])
def test_shop_is_well_configured(run: Run, command):
    status, said = run(*command)
    assert status == 0, said


def waiting(start: Start) -> subprocess.Popen[str]:
    process = start("shell", "-c", WAITING)
    read_until(process, "waiting")
    return process


def test_last_process_stops_the_embedded_server(start: Start, run: Run, postgres_folder: Path):
    """Whoever started it, and whoever of them is killed."""
    server = Server(postgres_folder)
    first, second = waiting(start), waiting(start)
    first.kill()
    first.wait()
    assert run("check")[0] == 0  # comes and goes
    assert server.is_running()
    second.terminate()
    assert second.wait(180) == 128 + 15
    assert not server.is_running()


def test_several_may_come_at_once(start: Start, tmp_path: Path):
    """One makes and starts the cluster, the others wait for it."""
    folder = str(tmp_path / "pg")
    crowd = [start("check", "--database=default", SHOP_POSTGRES_FOLDER=folder) for _ in range(4)]
    ended = [(process.communicate(timeout=250)[0], process.returncode) for process in crowd]
    assert {status for _, status in ended} == {0}, ended
    assert not Server(tmp_path / "pg").is_running()


@pytest.mark.skipif("DATABASE_URL" not in os.environ, reason="needs a server that is given")
def test_with_a_database_url_no_server_is_started(run: Run, tmp_path: Path):
    given = {"DATABASE_URL": os.environ["DATABASE_URL"]}
    unused = tmp_path / "unused"
    assert run("check", "--database=default", **given, SHOP_POSTGRES_FOLDER=str(unused))[0] == 0
    assert not unused.exists()
