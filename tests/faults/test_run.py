"""A run goes on to its end and writes its report, whatever happens to one of its trials."""

import json
import threading
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.faults import aftermath, run, services
from tests.faults.clock import now
from tests.faults.history import Writer, read
from tests.faults.plan import HOLDS, Trial
from tests.faults.services import Services, connect
from tests.faults.stage import Over, Stage
from tests.faults.trial import Running, broken
from tests.helpers import servers
from tests.helpers.observe import until

pytestmark = [pytest.mark.processes, pytest.mark.faults]

ROOT = Path(__file__).resolve().parents[2]


def trial(number, nemesis="pause"):
    return Trial(number, "leases", "tokens", nemesis, HOLDS, 3, "1", 18, ttl=0)


class Fine:
    """A trial in which all is well."""

    def __init__(self, each, *_):
        self.trial = each

    def run(self):
        found = {"operations": 100, "outcomes": {"ok": 100}, "faults": {"stop": 1}}
        return broken(self.trial, [], now()) | found


def _refuse(_):
    raise ZeroDivisionError


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Run three trials, with ``Running`` replaced; return the report and the lines."""
    monkeypatch.setattr(run, "plan", lambda *_: [trial(1), trial(2), trial(3)])
    monkeypatch.setattr(run, "versions", lambda: [18])
    arguments = Namespace(
        minutes=60, seconds=None, seed="1", output=tmp_path, started=0.0, smoke=False,
        mutations=False, workload=None, nemesis=None, system=None, backend=None, trial=None,
    )  # fmt: skip

    def everything(running, price=lambda *_: []):
        monkeypatch.setattr(run, "Running", running)
        monkeypatch.setattr(run, "_prices", price)
        lines = []
        stand_in = Namespace(left_out={}, postgres=_refuse)
        try:
            run.everything(arguments, stand_in, say=lines.append)
        finally:
            report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
            assert (tmp_path / "report.html").exists()
        return report, lines

    everything.output = tmp_path
    return everything


def test_a_trial_that_raises_is_recorded_as_broken_and_the_run_goes_on(ran):
    class Raising(Fine):
        def __init__(self, each, *_):
            super().__init__(each)
            if each.number == 2:
                raise services.ServerError("it did not start")

    report, _ = ran(Raising)
    assert [each["number"] for each in report["trials"]] == [1, 2, 3]
    assert ["did not start" in str(each["errors"]) for each in report["trials"]] == [0, 1, 0]
    assert [sentence.split(":")[0] for sentence in report["failures"]] == [
        "IDLE, so it shows nothing", "BROKEN",
    ]  # fmt: skip


def test_an_error_without_a_word_is_no_error_of_the_run(ran):
    """A worker that is killed while it writes its traceback leaves an empty file."""

    class Silent(Fine):
        def run(self):
            return super().run() | {"errors": [""]}

    report, _ = ran(Silent)
    assert len(report["trials"]) == 3


def test_prices_that_cannot_be_measured_lose_nothing_else(ran):
    report, _ = ran(Fine, run._prices)
    assert report["left_out"] == {"a frozen holder's price": "ZeroDivisionError()"}
    assert len(report["trials"]) == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_run_that_is_stopped_reports_what_it_has(ran, stop):
    class Stopped(Fine):
        def run(self):
            if self.trial.number == 3:
                raise stop
            return super().run()

    with pytest.raises(stop):
        ran(Stopped)
    report = json.loads((ran.output / "report.json").read_text(encoding="utf-8"))
    assert len(report["trials"]) == 2
    assert report["left_out"] == {"the rest": "stopped after 2 of 3 trials"}


@pytest.fixture
def running(monkeypatch):
    """The services of a run, without its tables."""
    monkeypatch.setattr(services, "make_tables", lambda _: None)
    monkeypatch.setattr(services, "_no_redis", lambda: "not needed")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'example_project'}")
    with Services() as found:
        yield found


def test_a_server_that_a_trial_left_dead_runs_in_the_next_one(running):
    server = running.postgres(servers.version())
    server.kill()
    assert running.postgres(servers.version()) is server
    with connect(server) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_does_not_start_again_is_replaced(running):
    server = running.postgres(servers.version())
    server.stop("immediate")
    (server.folder / "global" / "pg_control").unlink()
    other = running.postgres(servers.version())
    assert other is not server
    with connect(other) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


def test_a_crew_that_has_died_is_replaced(running):
    crew = running.crew(faked=False)
    assert running.crew(faked=False) is crew
    crew._process.kill()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        crew.start("{}")
    crew._process.wait()
    assert running.crew(faked=False) is not crew


class Nothing:
    """Services of a trial that asks for none."""

    messages = -1

    def postgres(self, _):
        return None


def test_a_nemesis_is_ended_before_what_it_works_on_is_taken_down(tmp_path):
    class Waiting:
        def torment(self, stage):
            waits.set()
            with pytest.raises(Over):
                stage.wait(600)
            ended.set()

    waits, ended, errors = threading.Event(), threading.Event(), []
    found = Running(trial(1), Nothing(), tmp_path / "t")
    found.nemesis = Waiting()
    with pytest.raises(ZeroDivisionError), found._tormented(errors):
        assert waits.wait(90)
        raise ZeroDivisionError
    assert ended.is_set()
    found.stage.close()


@pytest.mark.parametrize(
    ("backend", "noted", "says"),
    [
        ("django", {"backend": "DatabaseWrapper", "fast": True}, ""),
        ("django", {"backend": "DatabaseWrapper", "fast": False}, "'fast': False"),
        ("logged", {"backend": "Logged", "fast": False}, ""),
        ("logged", {"backend": "DatabaseWrapper", "fast": True}, "in place of"),
        ("logged", None, "no worker has said"),
    ],
)
def test_a_connection_that_is_not_the_planned_one_is_an_error(tmp_path, backend, noted, says):
    found = Running(replace(trial(1), backend=backend), Nothing(), tmp_path / "t")
    found.stage.close()
    history = Writer(tmp_path / "t" / "worker-0-0.jsonl", "0.0")
    if noted:
        history.note("backend", **noted)
    with history.operation("add"):
        pass
    told = found._not_as_planned(read(tmp_path / "t"))
    assert len(told) == bool(says)
    assert says in "".join(told)


def test_a_state_that_is_never_seen_is_told_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.faults.stage._PATIENCE", -1)
    stage = Stage(trial(1), Nothing(), None, tmp_path)
    with pytest.raises(TimeoutError, match="another leader"):
        stage.until_seen(lambda: False, "another leader")
    stage.close()


@pytest.fixture(scope="module")
def quiet():
    """A server that nobody else is connected to."""
    return servers.throw_away()


def left(database, others):
    return aftermath.judge(database, trial(1), [], [], clock=False, others=others)


def test_a_connection_that_is_left_is_told_by_its_name_and_statement(quiet):
    with connect(quiet) as database, connect(quiet) as forgotten:
        forgotten.execute("SELECT 'its last words'")
        [violation] = left(database, None)
        [named] = left(database, "Patroni%")
    assert violation.invariant == named.invariant == 6
    assert "its last words" in violation.text


def test_only_the_connections_of_others_are_left_out(quiet):
    with (
        connect(quiet) as database,
        psycopg.connect(quiet.url, application_name="Patroni heartbeat"),
    ):
        # The one that was closed just now may still be there.
        until(lambda: left(database, "Patroni%") == [], "theirs is left out")
        [violation] = left(database, None)
    assert violation.count == 1
    assert "Patroni heartbeat" in violation.text
