"""``dblock doctor`` finds each fault that is planted in a real server."""

import json
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from django.db import InternalError, ProgrammingError, connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg import IsolationLevel

from django_dblock import LockTimeout, advisory_lock, fenced_lock
from django_dblock.doctor import tables as bloat
from django_dblock.doctor.facts import Pin, is_shared
from tests.conftest import conninfo
from tests.doctor.helpers import HEALTHY, found, leading, with_options
from tests.fencing.running import dblock, environment
from tests.helpers import observe, servers

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]

ROOT = Path(__file__).resolve().parents[2]


def test_healthy_database_has_no_warning():
    with with_options(HEALTHY):
        assert {finding.level for finding in found().values()} == {"ok"}


class TestPooler:
    @contextmanager
    def through(self, mode, pool_size=20, query_wait_timeout=60, **settings):
        name = connection.settings_dict["NAME"]
        pool = {"pool_size": pool_size, "query_wait_timeout": query_wait_timeout}
        with servers.pgbouncer(conninfo(), name, mode=mode, **pool) as port:
            with leading(HOST="127.0.0.1", PORT=port, **settings):
                yield port

    def test_statement_pooling_is_an_error(self):
        with self.through("statement"):
            findings = found()
        finding = findings["pooler-mode"]
        assert finding.level == "error"
        assert "transaction blocks not allowed in statement pooling mode" in finding.found
        assert "pool_mode = transaction" in finding.do
        assert "isolation" not in findings, "there is none"
        assert findings["migration"].level == "ok"

    def test_transaction_mode_is_fine_without_server_side_cursors(self):
        with self.through("transaction", pool_size=1, DISABLE_SERVER_SIDE_CURSORS=True):
            findings = found()
        assert findings["pooler-mode"].level == "ok"
        assert "for one transaction" in findings["pooler-mode"].found
        assert "pooler-cursors" not in findings
        assert "tcp_keepalive in the pooler" in findings["vanished-client"].do

    def test_transaction_mode_with_server_side_cursors_is_a_warning(self):
        # With more, PgBouncer may give two clients one each: it has not taken the first back yet.
        with self.through("transaction", pool_size=1):
            finding = found()["pooler-cursors"]
        assert finding.level == "warning"
        assert "DISABLE_SERVER_SIDE_CURSORS" in finding.do

    def test_session_pooling_is_recognised(self):
        with self.through("session"):
            findings = found()
        assert "for a session, as far" in findings["pooler-mode"].found
        assert "pooler-cursors" not in findings

    def test_exhausted_pool_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr("django_dblock.doctor.facts._PATIENCE", 0.2)
        with self.through("session", pool_size=1):
            finding = found()["pooler-mode"]
        assert finding.level == "info"
        assert "could not see whether" in finding.found

    def test_pooler_that_rejects_waiters_is_survived(self, monkeypatch):
        monkeypatch.setattr("django_dblock.doctor.facts._PATIENCE", 60)
        with self.through("session", pool_size=1, query_wait_timeout=2):
            assert "could not see whether" in found()["pooler-mode"].found

    def test_open_transaction_leaves_pool_mode_unknown(self):
        from django.db import transaction

        with self.through("transaction"), transaction.atomic():
            assert "could not see whether" in found()["pooler-mode"].found

    def test_options_that_libpq_does_not_know_are_left_out(self, monkeypatch):
        """A backend with a pool of its own adds some."""
        plain = DatabaseWrapper.get_connection_params
        connection.ensure_connection()
        monkeypatch.setattr(
            DatabaseWrapper, "get_connection_params", lambda self: {**plain(self), "MAX_CONNS": 4}
        )
        assert is_shared(connection) is False

    def test_no_pooler_is_ok(self):
        assert found()["pooler-mode"].found == "No pooler in front of the server."


def test_standby_is_an_error(standby):
    with leading("other", HOST="127.0.0.1", PORT=standby.port, NAME="postgres"):
        finding = found("other")["standby"]
    assert finding.level == "error"
    assert "'other' is a standby" in finding.found
    assert "alias of the primary" in finding.do


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_snapshot_isolation_of_the_alias_is_an_error(level, settings):
    options = {**connection.settings_dict["OPTIONS"], "isolation_level": level}
    with leading(OPTIONS=options):
        finding = found()["isolation"]
        assert finding.level == "error"
        assert level.name.replace("_", " ") in finding.found
        settings.DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True
        assert found()["isolation"].level == "info"


def test_snapshot_isolation_of_role_or_database_is_an_error():
    with with_options("-c default_transaction_isolation=serializable"):
        assert found()["isolation"].level == "error"


class TestLockTable:
    """``primary`` has room for 10 * (20 + 2) locks by its settings, and for some more in fact."""

    @pytest.mark.parametrize(("locks", "level"), [(150, "warning"), (210, "error")])
    def test_nearly_full_lock_table_is_a_warning(self, locks, level, small_lock_table, primary):
        with psycopg.connect(primary.url, application_name="bulk") as filling:
            filling.execute(
                "SELECT pg_advisory_xact_lock(n) FROM generate_series(1, %s::int) AS n", [locks]
            )
            finding = found("other")["lock-table"]
            pid = filling.info.backend_pid
        assert finding.level == level
        assert "of about 220 places" in finding.found
        assert f"Backend {pid} (role " in finding.found
        assert f" holds the most locks, {locks}." in finding.found
        assert "'bulk'" in finding.found
        assert "max_locks_per_transaction" in finding.do

    def test_prepared_transaction_fills_the_lock_table(self, small_lock_table, primary):
        with psycopg.connect(primary.url, autocommit=True) as filling:
            filling.execute(
                "BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 150) AS n;"
                " PREPARE TRANSACTION 'many'"
            )
            try:
                finding = found("other")["lock-table"]
            finally:
                filling.execute("ROLLBACK PREPARED 'many'")
        assert "A prepared transaction holds" in finding.found

    def test_shared_locks_on_one_key_take_one_place(self, rival, connect):
        """So many that the few locks of the server's own vacuum don't matter."""

        def taken():
            return int(found()["lock-table"].found.split()[0])

        lock = "BEGIN; SELECT pg_advisory_xact_lock_shared(n) FROM generate_series(1, 100) AS n"
        before = taken()
        for _ in range(5):
            connect().execute(lock)
        assert 50 < taken() - before < 150

    def test_full_lock_table_is_an_error(self, full_lock_table, small_lock_table):
        """There is no room for the doctor's own questions."""
        findings = found("other")
        assert findings["lock-table"].level == "error"
        assert "max_locks_per_transaction" in findings["lock-table"].do


class TestMigration:
    def test_missing_table_is_found(self, observer):
        observer.execute("ALTER TABLE django_dblock_idempotencykey RENAME TO gone")
        try:
            finding = found()["migration"]
        finally:
            observer.execute("ALTER TABLE gone RENAME TO django_dblock_idempotencykey")
        assert finding.level == "error"
        assert finding.found == "There is no table django_dblock_idempotencykey."
        assert finding.do == "Run 'manage.py migrate django_dblock --database default'."

    def test_missing_column_is_found(self, observer):
        observer.execute("ALTER TABLE django_dblock_fencedlock RENAME COLUMN grants TO gone")
        try:
            finding = found()["migration"]
        finally:
            observer.execute("ALTER TABLE django_dblock_fencedlock RENAME COLUMN gone TO grants")
        assert finding.found == "Table django_dblock_fencedlock has no column grants."

    def test_table_outside_search_path_is_found(self, observer):
        observer.execute("CREATE SCHEMA away; ALTER TABLE django_dblock_fencedlock SET SCHEMA away")
        try:
            finding = found()["migration"]
        finally:
            observer.execute(
                "ALTER TABLE away.django_dblock_fencedlock SET SCHEMA public; DROP SCHEMA away"
            )
        assert "is in schema 'away', which is not in the search_path" in finding.found

    def test_tables_routed_elsewhere_are_not_missed(self, primary, settings):
        with psycopg.connect(primary.url, autocommit=True) as owner:
            owner.execute("DROP DATABASE IF EXISTS without_tables")
            owner.execute("CREATE DATABASE without_tables")
        with leading("other", HOST="127.0.0.1", PORT=primary.port, NAME="without_tables"):
            findings = found("other")
            assert "migration" not in findings
            assert "django_dblock_fencedlock in 'default'" in findings["tables-elsewhere"].found
            settings.DBLOCK_DATABASE = "other"
            assert found()["migration"].level == "error"

    def test_existing_tables_are_examined_despite_a_router(self):
        findings = found("other")
        assert findings["migration"].level == "ok"
        assert "tables-elsewhere" not in findings


@pytest.fixture
def plain(observer):
    """A role that may do nothing yet."""
    observer.execute("DROP ROLE IF EXISTS dblock_plain; CREATE ROLE dblock_plain LOGIN")
    yield "dblock_plain"
    observer.execute("DROP OWNED BY dblock_plain; DROP ROLE dblock_plain")


class TestPrivileges:
    def test_missing_table_privilege_is_named(self, plain, observer):
        observer.execute(
            "GRANT SELECT ON django_dblock_fencedlock, django_dblock_fencedticket,"
            " django_dblock_idempotencykey, django_dblock_latchpart TO dblock_plain;"
            "GRANT INSERT, DELETE ON django_dblock_latchpart TO dblock_plain;"
            "GRANT INSERT, UPDATE, DELETE ON django_dblock_fencedlock, django_dblock_fencedticket"
            " TO dblock_plain"
        )
        with leading(USER=plain):
            finding = found()["privileges"]
        assert finding.level == "error"
        assert finding.found == (
            "Role 'dblock_plain' lacks privileges on django_dblock_idempotencykey: INSERT, UPDATE,"
            " DELETE."
        )
        observer.execute(finding.do.partition(": ")[2])
        with leading(USER=plain):
            assert found()["privileges"].level == "ok", "what it said to do helps"

    def test_missing_function_privilege_is_named(self, plain, observer):
        function = "pg_try_advisory_xact_lock(bigint)"
        observer.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        try:
            with leading(USER=plain):
                finding = found()["lock-functions"]
        finally:
            observer.execute(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")
        assert finding.level == "error"
        assert finding.found == f"Role 'dblock_plain' may not call {function}."
        assert "GRANT EXECUTE" in finding.do

    @pytest.mark.parametrize("policy", ["false", "current_setting('app.tenant') = name"])
    def test_row_level_security_is_reported(self, policy, plain, observer):
        table = "django_dblock_fencedlock"
        observer.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table}, django_dblock_fencedticket,"
            f" django_dblock_idempotencykey, django_dblock_latchpart TO {plain};"
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
            f"CREATE POLICY tenant ON {table} USING ({policy})"
        )
        try:
            assert "row-security" not in found(), "a superuser passes by the policies"
            with leading(USER=plain):
                findings = found()
                with pytest.raises(ProgrammingError), fenced_lock("nightly", ttl=5):
                    pass
            finding = findings["row-security"]
            observer.execute(finding.do.partition(": ")[2].partition(";")[0])
            with leading(USER=plain):
                assert found()["privileges"].level == "ok", "what it said to do helps"
                with fenced_lock("nightly", ttl=5):
                    pass
        finally:
            observer.execute(
                f"DROP POLICY tenant ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
            )
        assert "connection" not in findings
        assert "privileges" not in findings
        assert finding.level == "warning"
        assert finding.found == (
            "Row-level security applies to role 'dblock_plain' on django_dblock_fencedlock."
        )

    def test_settings_go_to_the_role_that_signs_in(self, plain):
        """The settings of a role that is assumed by SET ROLE are never applied."""
        options = {**connection.settings_dict["OPTIONS"], "assume_role": plain}
        with leading(OPTIONS=options):
            findings = found()
            user = connection.settings_dict["USER"]
        for each in ("hung-client", "vanished-client", "waiting-client", "time-limits"):
            assert f'ALTER ROLE "{user}" SET' in findings[each].do
        assert f'TO "{plain}"' in findings["visibility"].do

    def test_hidden_details_are_reported(self, plain, observer):
        with leading(USER=plain):
            finding = found()["visibility"]
            observer.execute("GRANT pg_read_all_stats TO dblock_plain")
            assert found()["visibility"].level == "ok"
        assert finding.level == "info"
        assert "hides the query, state, client and times" in finding.found


class TestBloat:
    @contextmanager
    def pinned(self, rival):
        """Somebody reads at REPEATABLE READ while a lease is renewed two thousand times."""
        with fenced_lock("nightly", ttl=600):
            pass
        rival.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        rival.execute("SELECT FROM django_dblock_fencedlock")
        with psycopg.connect(conninfo(), autocommit=True) as renewing:
            renewing.execute(
                "DO $$ BEGIN FOR n IN 1..2000 LOOP"
                " UPDATE django_dblock_fencedlock SET renewed_at = clock_timestamp(); COMMIT;"
                " END LOOP; END $$"
            )
            renewing.execute("SELECT pg_stat_force_next_flush()")
            renewing.execute("VACUUM django_dblock_fencedlock")
            yield renewing

    def test_long_transaction_keeps_dead_rows(self, rival):
        with self.pinned(rival):
            finding = found()["table-bloat"]
            rival.execute("ROLLBACK")
        assert finding.level == "warning"
        assert "django_dblock_fencedlock has 2,0" in finding.found
        pid = rival.info.backend_pid
        assert f"kept by the transaction of backend {pid} (role " in finding.follows
        assert f"SELECT pg_terminate_backend({pid});" in finding.do

    def test_negative_twin_vacuum_removes_unpinned_rows(self, rival):
        with self.pinned(rival) as renewing:
            rival.execute("ROLLBACK")
            renewing.execute("VACUUM django_dblock_fencedlock")
            renewing.execute("SELECT pg_stat_force_next_flush()")
            assert found()["table-bloat"].level == "ok"

    def test_new_transaction_is_not_blamed(self):
        facts = gathered("default")
        [table, *_] = facts.tables
        new, old = (Pin("backend", pid, xids, 1.0, "") for pid, xids in (("7", 9), ("8", 2000)))
        bloated = replace(facts, tables=(replace(table, dead=2000, live=1),), pins=(new,))
        [finding] = bloat.table_bloat(bloated)
        assert finding.do.startswith(f"VACUUM {table.name};")
        assert "kept by" not in finding.follows
        [finding] = bloat.table_bloat(replace(bloated, pins=(old, new)))
        assert "pg_terminate_backend(8)" in finding.do

    def test_autovacuum_off_is_reported(self):
        facts = gathered("default")
        [table, *_] = facts.tables
        pin = Pin("backend", "7", 2000, 1.0, "role shop")
        off = replace(
            facts, tables=(replace(table, dead=2000, live=1),), pins=(pin,),
            settings={**facts.settings, "autovacuum": "off"},
        )  # fmt: skip
        [finding] = bloat.table_bloat(off)
        assert "autovacuum removes the rows" not in finding.do
        assert f"Then VACUUM {table.name}; Also switch autovacuum on" in finding.do

    def test_age_of_another_roles_transaction_is_hidden(self, rival, plain):
        with self.pinned(rival), leading(USER=plain):
            finding = found()["table-bloat"]
        rival.execute("ROLLBACK")
        assert "for a time that is hidden" in finding.follows

    def test_prepared_transaction_keeps_dead_rows(self, primary):
        with leading("other", HOST="127.0.0.1", PORT=primary.port, NAME="postgres"):
            with psycopg.connect(primary.url, autocommit=True) as preparing:
                preparing.execute("BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'it''s'")
                try:
                    pins = gathered("other").pins
                finally:
                    preparing.execute("ROLLBACK PREPARED 'it''s'")
        [pin] = [pin for pin in pins if pin.kind == "prepared"]
        assert (pin.name, pin.detail) == ("it's", "role postgres")
        assert pin.seconds >= 0

    @pytest.mark.processes
    def test_replication_slot_keeps_dead_rows(self):
        primary = servers.throw_away()
        try:
            with psycopg.connect(primary.url, autocommit=True) as looking:
                slot = "SELECT FROM pg_replication_slots WHERE xmin IS NOT NULL"
                with servers.standby(primary, slot="away"):
                    observe.until(lambda: looking.execute(slot).fetchall(), "it gives feedback")
                with leading("other", HOST="127.0.0.1", PORT=primary.port, NAME="postgres"):
                    pins = gathered("other").pins
        finally:
            primary.remove()
        [pin] = [pin for pin in pins if pin.kind == "slot"]
        assert (pin.name, pin.seconds, pin.detail) == ("away", None, "inactive")


def gathered(alias):
    from django_dblock.doctor.facts import gather

    return gather(connections[alias], "PostgreSQL")


@pytest.mark.parametrize(("skew", "way"), [("+10m", "ahead of"), ("-10m", "behind")])
def test_clock_difference_is_info_with_the_offset(skew, way):
    servers.need("faketime", "faketime")
    done = subprocess.run(
        ["faketime", "--exclude-monotonic", "-f", skew, *dblock("doctor", "--json")],
        stdout=subprocess.PIPE, text=True, check=False, timeout=60, cwd=ROOT, env=environment(),
    )  # fmt: skip
    [clock] = [each for each in json.loads(done.stdout)["findings"] if each["id"] == "clock"]
    assert clock["level"] == "info"
    assert f"10.0 minutes {way} the server's" in clock["found"]
    assert "Harmless" in clock["follows"]


class TestTimeLimits:
    def test_each_timeout_is_named(self):
        with with_options("-c statement_timeout=5s -c synchronous_commit=off"):
            findings = found()
        assert findings["hung-client"].level == "warning"
        assert findings["vanished-client"].level == "warning"
        assert "after 7,875 s of silence" in findings["vanished-client"].found
        assert findings["waiting-client"].level == "info"
        assert findings["time-limits"].level == "warning"
        assert "A lock waits up to 10 s" in findings["time-limits"].found
        assert findings["synchronous-commit"].level == "warning"

    def test_missing_timeouts_are_reported(self, settings):
        assert found()["time-limits"].level == "info"
        settings.DBLOCK_ADVISORY_TIMEOUT = None
        with with_options("-c statement_timeout=5s"):
            assert "A lock waits without a limit" in found()["time-limits"].found

    @pytest.mark.skipif(servers.version() < 17, reason="new in 17")
    def test_transaction_timeout_counts_as_a_limit(self):
        with with_options("-c transaction_timeout=90s"):
            assert found()["hung-client"].found == "transaction_timeout is 90 s."

    @pytest.mark.skipif(servers.version() < 17, reason="new in 17")
    def test_transaction_timeout_ends_a_wait(self, hold_lock):
        hold_lock("inventory")
        with with_options(f"{HEALTHY} -c transaction_timeout=5s"):
            finding = found()["time-limits"]
        with with_options(f"{HEALTHY} -c transaction_timeout=300ms"):
            with pytest.raises(InternalError) as ended, advisory_lock("inventory", timeout=9):
                pass
            connection.close()
        assert not isinstance(ended.value, LockTimeout)
        assert finding.level == "warning"
        assert "transaction_timeout is 5 s" in finding.found
        assert "connection" in finding.follows

    @pytest.mark.skipif(servers.version() < 17, reason="new in 17")
    def test_transaction_timeout_limits_a_statement(self):
        with with_options("-c transaction_timeout=90s"):
            assert found()["time-limits"].level == "ok"

    def test_read_only_default_is_an_error(self):
        with with_options(f"{HEALTHY} -c default_transaction_read_only=on"):
            finding = found()["read-only"]
            with pytest.raises(InternalError, match="read-only"), fenced_lock("nightly", ttl=5):
                pass
        assert finding.level == "error"
        assert "default_transaction_read_only is on" in finding.found


class TestNoPostgres:
    def test_cockroachdb_is_refused_without_more_queries(self, statements):
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE SCHEMA impostor; CREATE FUNCTION impostor.version() RETURNS text LANGUAGE"
                " sql AS $$ SELECT 'CockroachDB CCL v24.1.0' $$;"
                " SET search_path = impostor, pg_catalog"
            )
            with statements() as sent:
                findings = found()
            cursor.execute("DROP SCHEMA impostor CASCADE")
        connection.close()
        assert list(findings) == ["engine"]
        assert findings["engine"].level == "error"
        assert "'default' is CockroachDB, not PostgreSQL" in findings["engine"].found
        assert len(sent) == 1

    def test_other_engine_is_an_error(self):
        assert "'sqlite' is SQLite, not PostgreSQL" in found("sqlite")["engine"].found

    def test_unreachable_server_is_an_error(self):
        with leading("other", PORT=servers.free_port()):
            findings = found("other")
        assert list(findings) == ["connection"]
        assert findings["connection"].level == "error"


def test_other_begin_errors_do_not_blame_a_pooler(monkeypatch):
    monkeypatch.setattr(
        "django_dblock.sql.doctor.ISOLATION", "SELECT pg_terminate_backend(pg_backend_pid())"
    )
    assert list(found()) == ["connection"]
    connection.close()


def test_number_of_statements_is_constant(statements, rival):
    with statements() as idle:
        found()
    rival.execute("BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 300) AS n")
    with statements() as busy:
        found()
    rival.execute("ROLLBACK")
    assert len(idle) == len(busy) == 15, "eleven questions, and two transactions"


def test_doctor_does_not_wait_for_locks(rival):
    """Not even for those who rewrite our tables."""
    rival.execute("BEGIN; LOCK TABLE django_dblock_fencedlock, django_migrations")
    with with_options(f"{HEALTHY} -c lock_timeout=1"):
        findings = found()
    rival.execute("ROLLBACK")
    assert findings["migration"].level == "ok"
    assert not {"partitions", "unattended", "latches", "jobs"} & findings.keys(), (
        "the leases can't be read"
    )
