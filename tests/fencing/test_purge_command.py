"""``manage.py dblock purge``: long idle rows are removed in small commits."""

import json
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from django_dblock import FencedLock, fenced_lock
from tests.fencing.helpers import NAME
from tests.helpers.commands import Terminal, run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def idle(observer):
    """Five rows, of which nobody has wanted three since a month and a day."""
    names = ["a", "b", "c", "fresh", NAME]
    for name in names:
        with fenced_lock(name, ttl=60):
            pass
    observer.execute(
        "UPDATE django_dblock_fencedlock SET expires_at = expires_at - interval '31 days',"
        " token = token - 31 * 86400000::bigint WHERE name IN ('a', 'b', 'c')"
    )
    return names


def left():
    return sorted(FencedLock.objects.values_list("name", flat=True))


def test_only_idle_rows_are_purged(idle):
    assert run("purge", "--kind", "fenced") == "3 of 3 rows of fenced locks removed.\n"
    assert left() == ["fresh", NAME]
    assert run("purge", "--kind", "fenced") == "0 of 0 rows of fenced locks removed.\n"


def test_database_without_tables_is_refused():
    with connection.cursor() as cursor:
        cursor.execute("SET search_path = pg_catalog")
    try:
        with pytest.raises(CommandError, match="There is no table of django_dblock"):
            run("purge")
    finally:
        connection.close()


def test_dry_run_only_counts(idle, statements):
    with statements() as sent:
        assert (
            run("purge", "--kind", "fenced", "--dry-run")
            == "3 rows of fenced locks would be removed.\n"
        )
    assert len(sent) == 1
    assert len(left()) == 5


def test_json_has_the_counts(idle):
    assert json.loads(run("purge", "--kind", "fenced", "--dry-run", "--json")) == {
        "fenced": {"idle": 3, "removed": 0}
    }
    assert json.loads(run("purge", "--kind", "fenced", "--json")) == {
        "fenced": {"idle": 3, "removed": 3}
    }


def test_purge_commits_in_batches(idle, statements):
    """One count, one statement for dead tickets, then two rows, then one."""
    with statements() as sent:
        assert run("purge", "--kind", "fenced", "--batch", "2").startswith("3 of 3")
    assert len(sent) == 4


def test_row_in_use_is_skipped(idle, rival):
    with rival.transaction():
        rival.execute("SELECT FROM django_dblock_fencedlock WHERE name = 'b' FOR KEY SHARE")
        assert run("purge", "--kind", "fenced") == "2 of 3 rows of fenced locks removed.\n"
    assert left() == ["b", "fresh", NAME]


def test_purged_name_gets_a_greater_token(idle):
    tokens = dict(FencedLock.objects.values_list("name", "token"))
    run("purge", "--kind", "fenced", "--idle", "3600")
    for name in "abc":
        with fenced_lock(name, ttl=60) as lock:
            assert lock.token > tokens[name]


@pytest.mark.parametrize("arguments", [("--idle", "3599"), ("--idle", "nan"), ("--batch", "0")])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_too_small_options_are_refused_before_sql(arguments, dry, statements):
    with statements() as sent, pytest.raises(CommandError, match=r"at least|at the earliest"):
        run("purge", "--kind", "fenced", *arguments, *dry)
    assert len(sent) == 0


def test_terminal_shows_progress(idle, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    out = Terminal()
    call_command("dblock", "purge", "--kind", "fenced", "--batch", "2", stdout=out)
    assert out.getvalue() == "\r2 of 3\r3 of 3\n3 of 3 rows of fenced locks removed.\n"


def test_terminal_with_rich_shows_a_bar(idle, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = Terminal()
    call_command("dblock", "purge", "--kind", "fenced", "--batch", "2", stdout=out, no_color=True)
    assert out.getvalue() == "3 of 3 rows of fenced locks removed.\n"
    assert "fenced locks" in capsys.readouterr().err


@pytest.mark.usefixtures("rendering")
def test_json_at_a_terminal_is_json_alone(idle, capsys, monkeypatch):
    """As in ``docker exec -t … | jq``, where both outputs are one terminal."""
    monkeypatch.setitem(sys.modules, "rich.progress", sys.modules.get("rich.console"))
    out = Terminal()
    call_command("dblock", "purge", "--kind", "fenced", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"fenced": {"idle": 3, "removed": 3}}
    assert capsys.readouterr().err == ""
