"""Every subcommand of ``dblock`` with each kind of output and server failure.

A closed pipe, an output without Unicode or none at all, a role without rights on one table, a
standby, missing tables, a wrong alias, ``python -OO``: nothing ends in a traceback, what can be
shown is shown, and the rest is one line that says what to do. Real processes, forked from one that
has set Django up.
"""

import json
import os
import subprocess
import sys

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections

from tests.helpers import observe
from tests.monitor import scene

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.server,
]

SUBCOMMANDS = {
    "list": ["list"],
    "list --json": ["list", "--json"],
    "watch": ["watch", "--interval", "0.1"],
    "key": ["key", "inventory", "sku-1"],
    "run": ["run", "--lock", "matrix", "--", "true"],
    "lead": ["lead", "matrix", "--", "true"],
    "migrate": ["migrate", "--timeout", "1", "--", "--plan"],
    "release": ["release", "nächtlich", "--yes"],
    "release --request": ["release", "--request", "1", "--retry", "--yes"],
    "terminate": ["terminate", "1", "--yes"],
    "purge": ["purge"],
    "doctor": ["doctor"],
    "doctor --json": ["doctor", "--json"],
}

COMPLAINTS = ("Traceback", "Exception ignored", "Error in sys.excepthook", "lost sys.stderr")


def run_all(tmp_path, cases, *flags):
    """Run the cases in one program; return their results."""
    whole = [{"stdout": "file", "database": {}, **case} for case in cases]
    for case in whole:
        name = {"NAME": connection.settings_dict["NAME"]}
        case["database"] = {"default": {**name, **case["database"].get("default", {})}}
        if case["arguments"][0] == "watch":
            case["ends_by_signal"] = True
    results = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, *flags, "-m", "tests.helpers.command_matrix", str(results)],
        input=json.dumps(whole), text=True, capture_output=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(results.read_text())


def matrix(tmp_path, *flags, **facts):
    """Run every subcommand under the same conditions; return the results by subcommand."""
    cases = [{"arguments": arguments, **facts} for arguments in SUBCOMMANDS.values()]
    results = dict(zip(SUBCOMMANDS, run_all(tmp_path, cases, *flags), strict=True))
    for name, result in results.items():
        assert not any(said in result["err"] for said in COMPLAINTS), (name, result)
    return results


def statuses(results):
    return {name: result["status"] for name, result in results.items()}


@pytest.fixture
def lease(observer):
    """A held lease with a name that ASCII has no letters for."""
    scene.lease(observer, "nächtlich", left=600)


NORMAL = {
    "list": 0, "list --json": 0, "watch": 0, "key": 0, "run": 0, "release": 0,
    "release --request": 1, "terminate": 1, "purge": 0,
}  # fmt: skip
"""Exit statuses without any fault; the doctor's depend on the server."""


def without_doctor(results):
    return {name: status for name, status in statuses(results).items() if name in NORMAL}


class TestOutput:
    def test_output_to_a_file_is_complete(self, tmp_path, lease):
        results = matrix(tmp_path)
        assert without_doctor(results) == NORMAL
        assert "nächtlich" in results["list"]["out"]
        assert "There is no request 1" in results["release --request"]["err"]

    def test_broken_pipe_is_status_141(self, tmp_path, lease):
        results = matrix(tmp_path, stdout="broken")
        ended = dict.fromkeys(NORMAL, 141) | {
            "watch": 0, "run": 0, "release --request": 1, "terminate": 1,
        }  # fmt: skip
        assert without_doctor(results) == ended
        assert results["doctor"]["status"] == 141

    def test_ascii_terminal_is_supported(self, tmp_path, lease):
        results = matrix(tmp_path, stdout="ascii")
        assert without_doctor(results) == NORMAL
        assert "n\\xe4chtlich" in results["list"]["out"]
        names = [row["name"] for row in json.loads(results["list --json"]["out"])["fenced"]]
        assert "nächtlich" in names

    def test_closed_output_is_supported(self, tmp_path, lease):
        results = matrix(tmp_path, stdout="closed")
        assert without_doctor(results) == NORMAL

    def test_optimised_python_without_docstrings(self, tmp_path, lease):
        results = matrix(tmp_path, "-OO")
        assert without_doctor(results) == NORMAL
        [shown] = run_all(tmp_path, [{"arguments": ["--help"]}], "-OO")
        assert "check a live database" in shown["out"]


class TestServer:
    def test_unknown_alias_is_an_error_message(self, tmp_path):
        cases = [
            {"arguments": [arguments[0], "--using", "nowhere", *arguments[1:]]}
            for name, arguments in SUBCOMMANDS.items()
            if name != "key"  # asks no database unless a part is a model
        ]
        for case, result in zip(cases, run_all(tmp_path, cases), strict=True):
            assert result["status"] in (1, 125), (case, result)
            assert "The connection 'nowhere' doesn't exist." in result["err"], case
            assert not any(said in result["err"] for said in COMPLAINTS)

    def test_unreachable_server_is_an_error_message(self, tmp_path):
        results = matrix(tmp_path, database={"default": {"PORT": "1"}})
        refused = ["list", "list --json", "release", "release --request", "terminate", "purge"]
        for name in refused:
            assert results[name]["status"] == 1, results[name]
            assert "connection" in results[name]["err"]
            assert len(results[name]["err"].splitlines()) == 1
        assert results["run"]["status"] == 125
        assert results["key"]["status"] == 0
        assert "can't be queried, trying again" in results["watch"]["out"]

    @pytest.fixture
    def without_rights(self, observer):
        """A role that may use every table but the one of requests."""
        observer.execute(
            "DROP ROLE IF EXISTS dblock_partly; CREATE ROLE dblock_partly LOGIN;"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON django_dblock_fencedlock,"
            " django_dblock_fencedticket, django_dblock_latchpart TO dblock_partly;"
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO dblock_partly"
        )
        yield {"default": {"USER": "dblock_partly"}}
        observer.execute("DROP OWNED BY dblock_partly; DROP ROLE dblock_partly")

    def test_role_without_rights_on_one_table_sees_the_rest(self, tmp_path, lease, without_rights):
        results = matrix(tmp_path, database=without_rights)
        assert without_doctor(results) == {**NORMAL, "purge": 1}
        for name, output in {"list": "out", "watch": "out", "purge": "err"}.items():
            said = results[name][output]
            assert "permission denied for table django_dblock_idempotencykey" in said, name
            assert "GRANT" in said
        assert "0 of 0 rows of fenced locks removed." in results["purge"]["out"]
        assert "nächtlich" in results["list"]["out"]
        [note] = json.loads(results["list --json"]["out"])["notes"]
        assert "permission denied" in note

    @pytest.fixture
    def empty(self, observer):
        """A database that was never migrated."""
        observer.execute("DROP DATABASE IF EXISTS dblock_empty")
        observer.execute("CREATE DATABASE dblock_empty")
        yield {"default": {"NAME": "dblock_empty"}}
        observer.execute("DROP DATABASE dblock_empty")

    def test_missing_tables_are_an_error_message(self, tmp_path, empty):
        results = matrix(tmp_path, database=empty)
        assert without_doctor(results) == {**NORMAL, "run": 125, "release": 1, "purge": 1}
        assert "Nothing is locked." in results["list"]["out"]
        for name in ("run", "release", "release --request", "purge"):
            assert "manage.py migrate" in results[name]["err"], name
        [shown] = run_all(
            tmp_path, [{"arguments": ["list", "--kind", "fenced"], "database": empty}]
        )
        assert shown["status"] == 1
        assert "run 'manage.py migrate'" in shown["err"]

    def test_standby_is_an_error_message(self, tmp_path, primary, standby, monkeypatch):
        other = connections["other"]
        other.close()
        for name, value in {"HOST": "127.0.0.1", "PORT": primary.port, "NAME": "postgres"}.items():
            monkeypatch.setitem(other.settings_dict, name, value)
        call_command("migrate", "django_dblock", database="other", verbosity=0)
        other.close()
        reach = {"host": "127.0.0.1", "user": other.settings_dict["USER"], "dbname": "postgres"}
        with (
            psycopg.connect(**reach, port=primary.port, autocommit=True) as observer,
            psycopg.connect(**reach, port=standby.port, autocommit=True) as looking,
        ):
            scene.lease(observer, "nächtlich", left=600)
            [lsn] = observer.execute("SELECT pg_current_wal_lsn()").fetchone()
            observe.until(
                lambda: looking.execute(
                    "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]
                ).fetchone()[0],
                "the standby has the lease",
            )
            try:
                where = {"HOST": "127.0.0.1", "PORT": standby.port, "NAME": "postgres"}
                results = matrix(tmp_path, database={"default": where})
            finally:
                observer.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        assert "standby" in results["list"]["out"]
        assert "nächtlich" in results["list"]["out"]
        for name in ("run", "release", "purge"):
            assert "standby" in results[name]["err"], (name, results[name])
            assert results[name]["status"] == (125 if name == "run" else 1)
