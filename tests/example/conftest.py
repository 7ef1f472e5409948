"""The example project, run as a user runs it: as processes of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.example.helpers import PROJECT, Run, Start, marked


@pytest.fixture(scope="session")
def postgres_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shop's embedded server lives during these tests; made once."""
    return tmp_path_factory.mktemp("shop") / "postgres"


@pytest.fixture
def environment(postgres_folder: Path) -> dict[str, str]:
    """A user's environment without a DATABASE_URL; each process in it can be found again."""
    dropped = {"DATABASE_URL", "DJANGO_SETTINGS_MODULE"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    mark = f"{os.getpid()}-{os.urandom(8).hex()}"
    return {**kept, "SHOP_POSTGRES_FOLDER": str(postgres_folder), "SHOP_TEST_MARK": mark}


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start ``manage.py …`` without a terminal; killed after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str, **more: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "error::DeprecationWarning", "manage.py", *arguments],
                cwd=PROJECT,
                env=environment | more,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        process.kill()  # nothing, if it has ended
        process.wait()
        process.stdout.close()


@pytest.fixture
def run(start: Start) -> Run:
    """Run ``manage.py …`` to its end: its exit status and what it said."""

    def run_one(*arguments: str, **more: str) -> tuple[int, str]:
        process = start(*arguments, **more)
        said, _ = process.communicate(timeout=500)
        return process.returncode, said

    return run_one


@pytest.fixture
def left_behind(environment: dict[str, str]) -> Callable[[], list[str]]:
    """The processes that came from this test and are still there."""
    return lambda: marked(environment["SHOP_TEST_MARK"])
