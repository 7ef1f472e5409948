"""Workloads and nemeses still run: seconds of them. Minutes of them are ``tox -e resilience``."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.checkers import INVARIANTS, Violation
from tests.faults.plan import CAUGHT, EVERY_NEMESIS, FAILS, HOLDS, plan
from tests.faults.report import by_backend, failures, has_shown, length
from tests.helpers.backends import BACKENDS

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
NEMESES = ("pause", "kill", "terminate", "cut")


def test_the_same_seed_makes_the_same_plan():
    assert plan(5, "7", [18, 16]) == plan(5, "7", [18, 16])
    assert plan(5, "7", [18, 16]) != plan(5, "8", [18, 16])


def test_each_trial_lasts_as_long_as_it_is_told():
    told, left = plan(5, "7", [18], 40), plan(5, "7", [18])
    assert {trial.seconds for trial in told} == {40}
    assert [replace(trial, seconds=0) for trial in told] == [
        replace(trial, seconds=0) for trial in left
    ]
    assert length(Namespace(minutes=5, seconds=40)) == "--minutes 5 --seconds 40"
    assert length(Namespace(minutes=5, seconds=None)) == "--minutes 5"


def test_a_plan_has_ours_every_peer_and_every_mutation():
    trials = plan(5, "7", [18])
    assert {trial.expected for trial in trials} == {HOLDS, FAILS, CAUGHT}
    assert len({trial.mutation for trial in trials}) == 10  # none, and nine
    assert [trial.number for trial in trials] == list(range(1, len(trials) + 1))


def test_each_backend_is_drawn_for_ours_and_half_of_them_are_djangos():
    trials = plan(60, "7", [18])
    ours = [trial for trial in trials if trial.expected == HOLDS and trial.workload != "shop"]
    assert {trial.backend for trial in ours} == set(BACKENDS)
    share = sum(trial.backend == "django" for trial in ours) / len(ours)
    assert 0.4 < share < 0.6
    assert len({trial.backend for trial in trials if trial.expected == CAUGHT}) > 2
    assert {trial.backend for trial in trials if trial.expected == FAILS} == {"django"}


def test_backend_comes_from_the_trials_seed():
    """What a seed has thrown before is thrown again, whatever backends there are."""
    again = {trial.number: trial.backend for trial in plan(5, "7", [18])}
    assert again == {trial.number: trial.backend for trial in plan(5, "7", [18, 16])}


def test_path_of_a_tenant_is_not_set_through_a_pooler():
    assert not [
        trial
        for seed in range(20)
        for trial in plan(5, str(seed), [18])
        if (trial.backend, trial.nemesis) == ("tenants", "pooler")
    ]


def test_a_long_plan_throws_everything_at_every_workload_and_has_patroni():
    trials = plan(60, "7", [18])
    thrown = {(trial.workload, trial.nemesis) for trial in trials if trial.expected == HOLDS}
    for workload in {trial.workload for trial in trials} - {"shop", "tokens", "deadlocks"}:
        assert {(workload, nemesis) for nemesis in EVERY_NEMESIS} <= thrown
    assert ("shop", "site") in thrown
    assert ("tokens", "patroni") in thrown


def result(expected=HOLDS, system="fenced", mutation="", lost=0, **more):
    violations = [Violation(1, "lost", lost)._asdict()] if lost else []
    return {
        "number": 1, "expected": expected, "system": system, "mutation": mutation,
        "workload": "counter", "nemesis": "pause", "violations": violations, "errors": [],
        "replay": "python -m …", "outcomes": {"ok": 100}, "faults": {"stop": 1},
        "seconds": 4, "ordered": {}, "backend": "django", "operations": 100, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("results", "begins"),
    [
        ([result()], []),
        ([result(lost=1)], ["VIOLATED"]),
        ([result(errors=["Traceback"])], ["BROKEN"]),
        ([result(ordered={"windows": 3, "undecided": 0})], []),
        ([result(ordered={"windows": 3, "undecided": 1})], ["UNDECIDED"]),
        ([result(outcomes={"unknown": 100})], ["IDLE"]),
        ([result(faults={})], ["IDLE"]),
        ([result(faults={}), result()], []),  # its second attempt
        ([result(faults={}), result(number=2)], ["IDLE"]),
        ([result(faults={}, seconds=1)], []),
        ([result(outcomes={"unknown": 9}, seconds=1)], ["IDLE"]),
        ([result(takeovers=1)], []),
        ([result(takeovers=0)], ["IDLE"]),
        ([result(takeovers=0, seconds=1)], []),
        ([result(CAUGHT, mutation="broken", takeovers=0, lost=1)], []),
        ([result(FAILS, "redis_py"), result(FAILS, "redis_py", lost=2)], []),
        ([result(FAILS, "redis_py")], ["HELD UNEXPECTEDLY: redis_py"]),
        ([result(CAUGHT, mutation="broken", lost=1)], []),
        ([result(CAUGHT, mutation="broken")], ["NOT CAUGHT: broken"]),
    ],
)
def test_a_run_fails_for_each_thing_that_it_must_show_and_does_not(results, begins):
    found = failures(results)
    assert len(found) == len(begins)
    assert all(map(str.startswith, found, begins))


def test_a_report_adds_up_by_backend():
    rows = by_backend(
        [
            result(),
            result(backend="tenants", lost=2),
            result(FAILS, "redis_py", lost=5),
            result(CAUGHT, mutation="one", backend="tenants"),
            result(CAUGHT, mutation="one", backend="tenants", lost=1),
            result(CAUGHT, mutation="two", backend="tenants"),
        ]
    )
    assert [list(row.values()) for row in rows] == [
        ["django", 1, 100, 1, 0, 0, 0],
        ["tenants", 1, 100, 1, 2, 2, 1],
    ]


@pytest.mark.parametrize(
    ("one", "shown"),
    [
        (result(), True),
        (result(lost=1), True),
        (result(faults={}), False),
        (result(faults={}, errors=["Traceback"]), True),
        (result(FAILS), False),
        (result(FAILS, lost=1), True),
    ],
)
def test_a_trial_is_tried_again_until_it_shows_something(one, shown):
    assert has_shown(one) is shown


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Some seconds of each workload of ours with a worker's own faults, in a process of its own."""
    folder = tmp_path_factory.mktemp("faults")
    nemeses = [part for nemesis in NEMESES for part in ("--nemesis", nemesis)]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults", "--smoke", "--seed", "1", *nemeses,
            "--output", str(folder),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return json.loads((folder / "report.json").read_text(encoding="utf-8")) | {"folder": folder}


def test_ours_holds(found):
    assert found["totals"]["violations_of_ours"] == 0
    assert found["failures"] == []


def test_each_workload_has_run_under_a_nemesis(found):
    assert {trial["workload"] for trial in found["trials"]} == {
        "counter", "saver", "stock", "payments", "acquirer", "tokens", "versions", "deadlocks",
        "savepoints", "permits", "readers_writers", "settlements", "outbox", "latches",
    }  # fmt: skip
    assert sum(found["totals"]["faults"].values()) > 0


def test_each_worker_had_the_connection_that_its_trial_is_about(found):
    """A trial in which one has not is broken; see ``Running._not_as_planned``."""
    assert len({trial["backend"] for trial in found["trials"]}) > 3
    assert not [trial["errors"] for trial in found["trials"] if trial["errors"]]
    assert sum(row["operations"] for row in found["backends"]) == found["totals"]["operations"]


def test_an_order_was_looked_for_in_what_was_done_with_leases(found):
    ordered = found["totals"]["ordered_of_ours"]
    assert ordered["operations"] > 0
    assert ordered["undecided"] == 0
    page = (found["folder"] / "report.html").read_text(encoding="utf-8")
    assert f"{ordered['operations']:,} operations on leases" in page


def test_the_report_says_how_to_replay_each_trial(found):
    for trial in found["trials"]:
        assert trial["replay"].endswith(f"--seed 1 --trial {trial['number']}")
    page = (found["folder"] / "report.html").read_text(encoding="utf-8")
    assert found["trials"][0]["replay"] in page
    assert all(text in page for text in INVARIANTS.values())
