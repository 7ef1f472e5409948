"""``manage.py dblock doctor``: what it prints, and its exit status."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection, connections

from django_dblock.doctor import tables as bloat
from django_dblock.doctor.examine import EXAMINATIONS
from django_dblock.doctor.facts import Pin, gather, version
from tests.doctor.helpers import HEALTHY, found, leading, with_options
from tests.helpers import servers

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def doctor(*arguments):
    """What it prints, and its status."""
    out = StringIO()
    try:
        call_command("dblock", "doctor", *arguments, stdout=out)
    except SystemExit as end:
        return out.getvalue(), end.code
    return out.getvalue(), 0


@pytest.fixture
def facts():
    return gather(connection, version(connection))


def test_healthy_database_is_status_0():
    with with_options(HEALTHY):
        shown, status = doctor()
    assert status == 0
    assert all(line.startswith("ok       ") for line in shown.splitlines())
    assert "ok       standby: This is a primary.\n" in shown


def test_warnings_come_last_and_are_status_3():
    with with_options(
        HEALTHY.replace("idle_in_transaction_session_timeout=60s", "lock_timeout=1s")
    ):
        shown, status = doctor()
    assert status == 3
    finding, follows, do = shown.splitlines()[-3:]
    assert finding.startswith("warning  hung-client: idle_in_transaction_session_timeout is 0")
    assert follows.startswith("         A program that stops")
    assert do.startswith("         -> ALTER ROLE ")


def test_info_is_status_0():
    with with_options(HEALTHY.replace("client_connection_check_interval=10s", "lock_timeout=1s")):
        shown, status = doctor()
    assert status == 0
    assert "\ninfo     waiting-client: " in shown


def test_errors_are_status_4():
    with leading("other", PORT=servers.free_port()):
        shown, status = doctor("--using", "other")
    assert status == 4
    assert shown.startswith("error    connection: Database 'other' can't be queried:")
    assert "??" not in shown, "the line breaks of libpq's message"


def test_json_has_every_finding_and_field():
    with with_options(HEALTHY):
        shown, status = doctor("--json")
    printed = json.loads(shown)
    assert status == 0
    assert (printed["schema"], printed["using"]) == (1, "default")
    assert {each["id"] for each in printed["findings"]} == set(found())
    for finding in printed["findings"]:
        assert finding.keys() == {"id", "level", "found", "follows", "do"}


def test_control_characters_in_names_are_escaped(rival):
    with leading("other", HOST="\x1b]0;pwned\x07"):
        shown, _ = doctor("--using", "other")
    assert shown.replace("\n", "").isprintable()


def test_every_finding_has_consequence_and_advice(facts):
    """Also on this server, where much is not as it should be."""
    for examination in EXAMINATIONS:
        for finding in examination(facts):
            assert (finding.level == "ok") == (not finding.follows) == (not finding.do), finding


def test_old_server_version_is_a_warning(facts):
    settings = {**facts.settings, "server_version_num": "140012", "server_version": "14.12"}
    [finding] = EXAMINATIONS[0](replace(facts, settings=settings))
    assert (finding.id, finding.level) == ("server-version", "warning")
    assert "PostgreSQL 14.12" in finding.found


def test_unix_socket_needs_no_keepalives(facts):
    from django_dblock.doctor.timeouts import vanished_client

    session = replace(facts.session, on_socket=True)
    [finding] = vanished_client(replace(facts, session=session))
    assert (finding.level, "Unix socket" in finding.found) == ("ok", True)


def test_role_name_with_a_quote_is_escaped(facts):
    assert replace(facts.session, role='a"b').grantee == '"a""b"'


def test_small_clock_difference_is_in_seconds(facts):
    from django_dblock.doctor.server import clock

    session = replace(facts.session, clock_ahead=-7.2)
    [finding] = clock(replace(facts, session=session))
    assert finding.found == "This machine's clock is 7 s ahead of the server's."


HOUR = 3600.0
PREPARED = Pin("prepared", "it's", 12, HOUR, "role shop")
SLOT = Pin("slot", "away", 2_000_000, None, "inactive")
REPORT = Pin("backend", "4711", 5, HOUR, "role report")


class TestWhoKeepsDeadRows:
    @pytest.mark.parametrize(
        ("pin", "who", "end"),
        [
            (REPORT, "the transaction of backend 4711 (role report), for 3600 s", "SELECT pg_term"),
            (PREPARED, "the prepared transaction it's (role shop)", "ROLLBACK PREPARED 'it''s';"),
            (SLOT, "the replication slot away (inactive), for an unknown time", "SELECT pg_drop_"),
        ],
    )  # fmt: skip
    def test_old_transactions_are_named_with_a_command(self, pin, who, end, facts):
        [finding] = bloat.oldest_transaction(replace(facts, pins=(pin,)))
        assert finding.level == "warning"
        assert who in finding.found
        assert end in finding.do

    @pytest.mark.parametrize(
        "pin", [replace(REPORT, seconds=60.0), replace(REPORT, seconds=None), replace(SLOT, xids=9)]
    )
    def test_young_transactions_are_not_named(self, pin, facts):
        [finding] = bloat.oldest_transaction(replace(facts, pins=(pin,)))
        assert finding.level == "ok"


class TestBloat:
    def test_unpinned_dead_rows_advise_vacuum(self, facts):
        table = replace(facts.tables[0], dead=5000, live=10, vacuumed=None)
        on = {**facts.settings, "autovacuum": "on"}
        facts = replace(facts, tables=(table,), pins=(), settings=on)
        [finding] = bloat.table_bloat(facts)
        assert "vacuumed never" in finding.found
        assert finding.do == "VACUUM django_dblock_fencedlock;"
        off = replace(facts, settings={**on, "autovacuum": "off"})
        [finding] = bloat.table_bloat(off)
        assert "switch autovacuum on" in finding.do

    @pytest.mark.parametrize(
        ("changes", "level"),
        [
            ({"dead": 999, "live": 0}, "ok"),
            ({"dead": 50_000, "live": 1_000_000}, "ok"),
            ({"dead": 1000, "live": 10}, "warning"),
            ({"pages": 128, "live": 1}, "ok"),
            ({"pages": 129, "live": 1}, "warning"),
            ({"pages": 5000, "live": 10_000}, "ok"),
        ],
    )
    def test_bloat_threshold(self, changes, level, facts):
        table = replace(facts.tables[0], **{"dead": 0, "live": 0, "pages": 0, **changes})
        [finding] = bloat.table_bloat(replace(facts, tables=(table,)))
        assert finding.level == level


def test_using_examines_another_alias(settings):
    settings.DBLOCK_DATABASE = "other"
    shown, _ = doctor()
    assert f"database {connections['other'].settings_dict['NAME']!r}" in shown
