"""``manage.py demo`` as a process: output, exit status, and no process left behind."""

import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from embedded_postgres import THROW_AWAY, Server

from tests.example.helpers import Run, Start, read_until
from tests.helpers.observe import until

SMALL = (
    *("--buyers=60", "--stock=6", "--edits=30", "--payments=30"),
    *("--processes=2", "--threads=8", "--workers=2"),
)
LONG = ("--buyers=20000", "--stock=6", "--processes=2", "--workers=2")

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600), pytest.mark.loss, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _nothing_is_left(
    start: Start, left_behind: Callable[[], list[str]], postgres_folder: Path
) -> Iterator[None]:
    """After each test: no site, no buyer, no acquirer, no proxy, no database server."""
    yield
    # A server's first process goes a moment after its pid file, for which its stopper waits.
    try:
        until(lambda: left_behind() == [], "nothing is left")
    except AssertionError as error:
        error.add_note(str(left_behind()))
        raise
    assert not Server(postgres_folder).is_running()


def figures(table: str, name: str) -> list[str]:
    """A row of a table: what stands under "guard off" and "guard on"."""
    rows = [[cell.strip() for cell in line.split("│")] for line in table.splitlines()]
    [found] = [row[2:4] for row in rows if row[1:2] == [name]]
    return found


def test_unguarded_rounds_break_and_guarded_never(run: Run):
    """Exit status 0, and a table for each round that says why."""
    status, said = run("demo", *SMALL)
    assert status == 0, said
    titles = (
        "The last items: ",
        "Many editors: ",
        "Three settlement workers: ",
        "Payments: ",
        "An outbox and its workers: ",
    )
    _, items, editors, workers, payments, outbox = re.split("|".join(titles), said)
    off, on = figures(items, "oversold")
    assert int(off) > 0
    assert on == "0"
    assert figures(items, "sold")[1] == "6"
    assert figures(items, "nothing sold twice") == ["BROKEN", "kept"]
    assert figures(items, "sold + left = stock at start") == ["BROKEN", "kept"]
    assert figures(items, "failed") == ["0", "0"]
    off, on = figures(editors, "lost")
    assert int(off) > 0
    assert on == "0"
    assert figures(editors, "saved, as editors were told") == ["30", "30"]
    assert figures(editors, "in the database")[1] == "30"
    assert figures(editors, "stock = start + saved edits") == ["BROKEN", "kept"]
    assert figures(editors, "each saved edit has its line") == ["BROKEN", "kept"]
    assert figures(editors, "failed") == ["0", "0"]
    off, on = figures(workers, "lost")
    assert float(off) > 0
    assert on == "0.00"
    assert figures(workers, "marked as booked") == ["300", "300"]
    assert figures(workers, "total written last by") == ["the frozen one", "its successor"]
    assert figures(workers, "settled = paid") == ["BROKEN", "kept"]
    assert figures(workers, "each payment is settled once") == ["BROKEN", "kept"]
    assert figures(workers, "no stale write over a newer one") == ["BROKEN", "kept"]
    off, on = figures(payments, "charges in the acquirer's books")
    assert int(off) > 30
    assert on == "30"
    assert figures(payments, "charges in the shop's books")[1] == "30"
    assert figures(payments, "charges the shop knows nothing of")[1] == "0"
    assert figures(payments, "charged too much")[1] == "0.00"
    assert all(int(killed) > 0 for killed in figures(payments, "workers killed"))
    assert figures(payments, "charges = orders") == ["BROKEN", "kept"]
    assert figures(payments, "both books agree to the cent") == ["BROKEN", "kept"]
    assert figures(payments, "each payment has one answer") == ["BROKEN", "kept"]
    assert figures(payments, "failed") == ["0", "0"]
    assert figures(outbox, "each mail is recorded") == ["kept", "kept"]
    assert figures(outbox, "each mail is recorded once") == ["BROKEN", "kept"]
    without, kept = re.search(r"Without the guards: (.+)\.\nWith them: (.+)\.\n", said).groups()
    assert kept == (
        "0 items oversold, 0 edits lost, 0.00 EUR not settled, 0.00 EUR charged too much, "
        "0 mails sent twice"
    )
    assert not set(kept.split(", ")) & set(without.split(", "))


def test_guarded_run_that_breaks_fails_the_demo(run: Run):
    status, said = run("demo", *SMALL, "--sabotage=guarded")
    assert status == 1
    assert 'BROKEN under advisory_lock("inventory", sku): nothing sold twice' in said
    assert "BROKEN under a version, and If-Match: stock = start + saved edits" in said
    assert 'BROKEN under fenced_lock("settlement"), and its guard(): settled = paid' in said
    assert "BROKEN under @idempotent: charges = orders" in said
    assert 'BROKEN under partitions("outbox"), and their guard(): each mail is recorded' in said


def test_attack_that_breaks_nothing_fails_the_demo(run: Run):
    status, said = run("demo", *SMALL, "--sabotage=unguarded")
    assert status == 1
    assert said.count("Nothing broke without the guard") == 15
    assert said.count("The attack proves nothing") == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle_ends_everything(start: Start, number):
    demo = start("demo", *LONG)
    read_until(demo, "20000 buyers")
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=180)
    assert demo.returncode == 128 + number, said
    assert "Traceback" not in said


def test_even_a_killed_demo_leaves_no_process(
    start: Start, run: Run, left_behind: Callable[[], list[str]]
):
    demo = start("demo", *LONG)
    read_until(demo, "20000 buyers")
    demo.kill()
    demo.communicate(timeout=180)
    until(lambda: all("postgres" in each for each in left_behind()), "site and buyers are gone")
    assert run("check")[0] == 0  # the next user of the database server's folder stops that, too


THIRD_ROUND = """
import uuid
from pathlib import Path
from django.core.management import call_command
from shop.demo.attack import Load
from shop.demo.database import use_own_database
from shop.demo.interruption import interruptible
from shop.demo.report import Report
from shop.demo.rounds.fenced import ThreeWorkers
from shop.demo.stage import Stage
with interruptible():
    url = use_own_database()
    call_command("migrate", verbosity=0)
    run = uuid.uuid4().hex
    ThreeWorkers().guarded(Stage(run, Load(1, 1, 1), 1, 1, 1, 1, url, Path(), Report()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_demo_leaves_no_stopped_worker(
    start: Start, run: Run, left_behind: Callable[[], list[str]], number
):
    demo = start("shell", "--no-imports", "-c", THIRD_ROUND)
    read_until(demo, "and is stopped")
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=180)
    assert "Traceback" not in said
    until(lambda: all("postgres" in each for each in left_behind()), "the workers are gone")
    assert run("check")[0] == 0  # the next user of the database server's folder stops that, too


def test_site_that_does_not_start_is_reported_with_its_log(run: Run):
    status, said = run("demo", *SMALL, GUNICORN_CMD_ARGS="--worker-class=nonsense")
    assert status == 1
    assert "The site did not start" in said
    assert "class uri 'nonsense' invalid or not found" in said


def test_serve_runs_until_it_is_signalled(start: Start, run: Run):
    demo = start("demo", "--serve")
    said = read_until(demo, "Ctrl-C ends it")
    assert "guard off" not in said, "the attack is not repeated unless asked"
    [shop, monitor, books] = re.findall(r"(?:shop|monitor|books) (?:is|are) at (\S+)", said)
    for address, text in ((shop, "Counter bell"), (books, '"charges"'), (monitor, "Log in")):
        with urllib.request.urlopen(address, timeout=60) as page:
            assert text in page.read().decode()
    [database] = re.findall(r"DATABASE_URL='(\S+)'", said)
    status, said = run("dblock", "list", "--held", DATABASE_URL=database)
    assert (status, said) == (0, "Nothing matches.\n")
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=180)
    assert demo.returncode == 0


@pytest.fixture
def given(tmp_path: Path) -> Iterator[Server]:
    """A user's own server."""
    server = Server(tmp_path / "given", settings=THROW_AWAY)
    server.start()
    yield server
    server.remove()


def test_given_server_gets_a_database_for_the_demo(given: Server, run: Run):
    status, said = run("demo", *SMALL, DATABASE_URL=given.url)
    assert status == 0, said
    # A second run finds the first one's database. It needs not go on for long.
    given_to = {"DATABASE_URL": given.url, "GUNICORN_CMD_ARGS": "--worker-class=nonsense"}
    status, said = run("demo", *SMALL, **given_to)
    assert "The site did not start" in said
    with psycopg.connect(host=str(given.socket_folder), user="postgres") as connection:
        tables = connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").fetchall()
        names = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")
        assert tables == []
        assert {name for (name,) in names} == {"postgres", "dblock_demo"}


def test_foreign_database_of_that_name_is_left_alone(given: Server, run: Run):
    given.run("createdb", "-h", str(given.socket_folder), "-U", "postgres", "dblock_demo")
    status, said = run("demo", *SMALL, DATABASE_URL=given.url)
    assert status == 1
    assert "'dblock_demo' that is not the demo's" in said


def test_unreachable_server_is_a_clear_error(run: Run, tmp_path: Path):
    status, said = run("demo", *SMALL, DATABASE_URL=f"postgres://nobody@:1/{tmp_path}/none")
    assert status == 1
    assert "unset DATABASE_URL" in said
    assert "Traceback" not in said
