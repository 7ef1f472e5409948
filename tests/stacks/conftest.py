"""Fixtures for programs that run beside other people's packages."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = HERE / "programs"

if os.environ.get("DJANGO_SETTINGS_MODULE") != "tests.stacks.settings":
    collect_ignore_glob = ["test_*.py"]

RunProgram = Callable[..., dict[str, Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder as ``stacks``."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.stacks)


@contextmanager
def fresh_database() -> Iterator[str]:
    """Make an empty database on the tests' server; yield its URL, and drop it."""
    server, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    name = f"stacks_{os.getpid()}_{os.urandom(3).hex()}"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield f"{server}/{name}"
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def run_program() -> RunProgram:
    """Run a file of ``programs/`` on an empty database; return the JSON object that it prints.

    The test is skipped where one of the packages in ``needs`` is not installed. ``through`` is a
    command that starts the program, such as an agent's.
    """

    def run(
        program: str,
        *arguments: str,
        needs: Sequence[str] = (),
        through: Sequence[str] = (),
        **environment: str,
    ) -> dict[str, Any]:
        for package in needs:
            pytest.importorskip(package)
        with fresh_database() as url:
            done = subprocess.run(
                [*through, sys.executable, str(PROGRAMS / f"{program}.py"), *arguments],
                env={
                    **os.environ,
                    "DATABASE_URL": url,
                    "DJANGO_SETTINGS_MODULE": "",
                    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "example_project")]),
                    **environment,
                },
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
