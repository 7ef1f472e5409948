"""The benchmarks still run: their shape is checked, never a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.targets import TARGETS

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
STATEMENTS = {
    ("inside", "advisory_lock"): 1,
    ("inside", "try_advisory_lock"): 1,
    ("commit", "advisory_lock"): 4,  # BEGIN, the lock, the update, COMMIT
    ("several", "advisory_locks"): 1,
    ("lease", "raw"): 2,
    ("lease", "again"): 2,
    ("save-inside", "plain"): 1,
    ("save-inside", "save_cas"): 1,
    ("save-inside", "save"): 1,
    ("list", "list"): 13,
    ("list-json", "list"): 13,
    ("bulk", "plain"): 4,  # the read, BEGIN, the write, COMMIT
    ("bulk", "bulk_save_cas"): 4,
    ("slow-lock", "plain"): 4,
    ("slow-lock", "tenants"): 4,
    ("slow-lease", "by-hand-proxied"): 2,
    ("slow-lease", "proxied"): 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One tiny run of everything, in a process of its own."""
    folder = tmp_path_factory.mktemp("benchmarks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--smoke", "--output", str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def found(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def test_every_scenario_is_measured_with_its_limit_first(found):
    names = [scenario["name"] for scenario in found["scenarios"] + found["crowds"]]
    assert names == [
        "inside", "commit", "commit-latency", "several", "several-latency",
        "save", "save-inside", "save-latency", "bulk", "lease", "lease-statements", "lease-latency",
        "once", "once-latency", "replay", "replay-latency", "request", "list", "list-json",
        "listening", "slow-lock", "slow-lock-latency", "slow-lease", "slow-once",
        "slow-once-latency", "hot", "hot-empty", "http-alone", "http",
    ]  # fmt: skip
    for scenario in found["scenarios"] + found["crowds"]:
        first = scenario["rows"][0]["name"]
        assert first in {"raw", "plain", "bare", "silent", "by-hand-plain"}


def test_every_curve_has_its_points_and_what_one_writes_by_hand(found):
    assert [curve["name"] for curve in found["curves"]] == [
        "processes", "keys", "together", "rows-first", "rows-replay", "rows-wal", "rows-bytes",
        "rows-purge", "rows-pages", "leases-beat", "leases-pair", "waiters-handover",
        "waiters-statements", "waiters-wal", "shown",
    ]  # fmt: skip
    for curve in found["curves"]:
        assert curve["rows"][0]["name"] in {"raw", "hand", "by hand"}
        for row in curve["rows"]:
            assert len(row["values"]) == len(curve["points"])


def test_every_row_has_its_figures(found):
    for scenario in found["scenarios"]:
        for row in scenario["rows"]:
            assert 0 < row["min_us"] <= row["median_us"] <= row["quartiles_us"][1]
            assert row["ratio"] > 0
    for crowd in found["crowds"]:
        for row in crowd["rows"]:
            assert {"turns_per_s", "busiest_to_idlest", "wait_p50_ms", "wait_p99_ms"} <= set(row)


def test_our_rows_send_what_the_budget_allows(found):
    sent = {
        (scenario["name"], row["name"]): row["statements"]
        for scenario in found["scenarios"]
        for row in scenario["rows"]
    }
    assert {place: sent[place] for place in STATEMENTS} == STATEMENTS


def test_no_way_loses_an_update(found):
    lost = {row["name"]: row["lost_updates"] for crowd in found["crowds"] for row in crowd["rows"]}
    assert set(lost.values()) == {0}


def test_targets_are_judged_and_the_table_shows_them(run, found):
    shown = (run / "results.txt").read_text(encoding="utf-8")
    assert [target["title"] for target in found["targets"]] == [one.title for one in TARGETS]
    for target in found["targets"]:
        assert isinstance(target["met"], bool)
        assert target["title"] in shown


def test_the_machine_and_the_command_are_named(found):
    assert found["command"] == "python -m tests.benchmarks --smoke"
    assert found["machine"]["postgresql_settings"]["fsync"] == "on"
    assert {"PostgreSQL", "Python", "Django"} <= set(found["versions"])


def test_a_run_can_be_put_into_the_docs(run, found, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.publish", str(run), str(run), "--to", tmp_path],
        cwd=ROOT,
        check=True,
    )
    shown = (tmp_path / "results.txt").read_text(encoding="utf-8")
    assert shown.count(f"## Save a row inside a transaction; Django {found['versions']['Django']}")
    pictures = (tmp_path / "pictures.txt").read_text(encoding="utf-8")
    assert pictures.count("](benchmarks/") == sum(
        len(found[part]) for part in ("scenarios", "crowds", "curves")
    )


def test_a_longer_run_of_a_curve_takes_its_place(run, found, tmp_path):
    longer, target = tmp_path / "longer", tmp_path / "docs"
    longer.mkdir()
    [first, *_] = found["curves"]
    rows = [{**row, "values": [*row["values"], 1.0]} for row in first["rows"]]
    curve = {**first, "points": [*first["points"], 123_456_789], "rows": rows}
    command = "python -m tests.benchmarks --long --only a"
    measured = {**found, "scenarios": [], "crowds": [], "curves": [curve], "command": command}
    (longer / "results.json").write_text(json.dumps(measured))
    (longer / f"curve-{first['name']}.svg").write_text("the longer run's")
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.publish", str(run), str(longer), "--to", target],
        cwd=ROOT,
        check=True,
    )
    shown = (target / "results.txt").read_text(encoding="utf-8")
    assert shown.count("123,456,789") == 1
    assert shown.count(f"Measured by `{command}`") == 1
    assert (target / f"curve-{first['name']}.svg").read_text() == "the longer run's"
    published = json.loads((target / "results.json").read_text(encoding="utf-8"))
    assert published["curves"][1:] == found["curves"][1:]


def test_profile_shows_whose_the_time_is():
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.profile", "once", "--calls", "10"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    figures = {line[1]: line[2:] for line in cells if len(line) > 4}
    assert figures["messages"][:3] == ["3.0", "5.0", "3.0"]
    for name in ("- parse", "- plan", "- execute", "- Django", "- psycopg"):
        assert float(figures[name][2]) > 0, name
    assert any(
        "INSERT INTO django_dblock_idempotencykey" in line[1] for line in cells[2:] if line[1:]
    )
