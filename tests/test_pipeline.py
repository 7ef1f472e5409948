"""psycopg's pipeline mode: what Django does in it, and why this package refuses it.

``tests/contract/test_backends.py`` has every operation in a pipeline, behind each backend.
"""

import psycopg
import pytest
from django.db import DataError, IntegrityError, NotSupportedError, connection, transaction
from psycopg.pq import PipelineStatus, TransactionStatus

from django_dblock import advisory_lock, fenced_lock, signals
from django_dblock.core.application_name import named
from django_dblock.core.connection import fetch
from django_dblock.core.simple_query import send
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.store import Place, durable_together
from tests.app.models import Counter
from tests.app.versioned import Product

# What waits in a pipeline for an answer that never comes waits without a limit.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.server,
    pytest.mark.timeout(60),
]

INSERT = "INSERT INTO app_counter (name, value) VALUES (%s, 1)"


@pytest.fixture
def pipeline():
    connection.ensure_connection()
    with connection.connection.pipeline() as found:
        assert connection.connection.info.pipeline_status == PipelineStatus.ON
        yield found


@pytest.fixture
def left_open():
    """Begins a pipeline, which is still open when the test ends its own block."""
    connection.ensure_connection()
    driver = connection.connection
    found = driver.pipeline()
    yield found.__enter__
    if connection.connection is not driver:
        return  # Django has closed it, after a ROLLBACK that failed, and has connected again
    # A transaction that a failed test left open would keep the next tests waiting.
    if driver.info.transaction_status != TransactionStatus.IDLE:
        driver.close()
        connection.connect()  # Django forgets the transaction
    elif driver.info.pipeline_status != PipelineStatus.OFF:
        found.__exit__(None, None, None)


@pytest.fixture
def released():
    """The ``committed`` of each lock that was released."""
    heard = []

    def hear(committed, **more):
        heard.append(committed)

    signals.lock_released.connect(hear)
    yield heard
    signals.lock_released.disconnect(hear)


def insert(name="a"):
    with connection.cursor() as cursor:
        cursor.execute(INSERT, [name])


class TestDjango:
    """Facts of Django and psycopg. Should one change, the refusal may be too strict."""

    def test_errors_come_with_a_later_statement(self, pipeline):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
            with pytest.raises(psycopg.errors.DivisionByZero):
                pipeline.sync()

    def test_number_of_rows_is_unknown(self, pipeline):
        assert Counter.objects.create(name="a").pk, "what returns rows is waited for"
        assert Counter.objects.filter(name="a").update(value=1) == -1

    def test_save_of_an_existing_row_inserts(self, pipeline):
        counter = Counter.objects.create(name="a")
        with pytest.raises(IntegrityError):
            counter.save()

    def test_autocommit_commits_later(self, pipeline, rival):
        with connection.cursor() as cursor:
            cursor.execute(INSERT, ["a"])
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (0,)
        pipeline.sync()
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (1,)


class TestRefused:
    def test_statement_is_refused(self, pipeline):
        with pytest.raises(NotSupportedError, match="'default' is in psycopg's pipeline mode"):
            fetch(connection, "SELECT 1", {})

    def test_several_statements_are_refused(self, pipeline):
        with pytest.raises(NotSupportedError):
            send(connection, "SELECT %(one)s", parameters={"one": 1})

    def test_statements_of_a_lease_are_refused(self, pipeline):
        place = Place(named(("a",)), "a", "default")
        with pytest.raises(NotSupportedError):
            durable_together(place, "taken", ["SELECT 1", "SELECT 2"], {}, [])

    def test_release_is_refused_and_the_lease_held(self):
        with fenced_lock("a", ttl=30) as lease:
            with connection.connection.pipeline(), pytest.raises(NotSupportedError):
                lease.release()
            lease.check()

    def test_entering_a_lease_is_refused(self, pipeline):
        with pytest.raises(NotSupportedError), fenced_lock("a", ttl=30):
            pass

    def test_versioned_write_is_refused(self):
        product = Product.objects.create(name="a")
        with connection.connection.pipeline():
            for act in (product.save, product.touch_version, product.delete_cas):
                with pytest.raises(NotSupportedError):
                    act()
            with pytest.raises(NotSupportedError):
                Product.objects.bulk_save_cas([product], ["stock"])


class TestLockLeftInAPipeline:
    """A pipeline is begun inside the block of a lock, and is still open at the block's end."""

    def test_transaction_is_committed_and_the_lock_free(self, left_open, released, rival):
        with advisory_lock("a"):
            left_open()
            insert()
        assert not connection.in_atomic_block
        assert connection.connection.info.pipeline_status == PipelineStatus.ON
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (1,)
        assert released == [True]

    def test_error_of_the_block_is_raised(self, left_open, released, rival):
        with pytest.raises(ZeroDivisionError), advisory_lock("a"):
            left_open()
            insert()
            raise ZeroDivisionError
        assert not connection.in_atomic_block
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (0,)
        assert released == [False]

    def test_failed_statement_is_raised_and_nothing_is_claimed(self, left_open, released, rival):
        with pytest.raises(DataError, match="division by zero"), advisory_lock("a"):
            left_open()
            insert()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1/0")
        assert not connection.in_atomic_block
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (0,)
        assert released == [None]

    def test_block_in_a_transaction_leaves_it_open(self, left_open, rival):
        with transaction.atomic():
            with advisory_lock("a"):
                left_open()
                insert()
            insert("b")
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (2,)


class TestLeaseLeftInAPipeline:
    """A release that is sent beside the pipeline could come before what is queued in it."""

    def test_block_says_what_to_do_and_renews_no_more(self, left_open):
        with pytest.raises(NotSupportedError, match="begins and ends inside") as caught:
            with fenced_lock("a", ttl=30) as lease:
                left_open()
        assert caught.value.__notes__ == [
            "a was not released. It is no longer renewed, and expires within 30 s."
        ]
        assert lease.trust not in heartbeat.of("default")._due
        assert lease.remaining == 0

    def test_error_of_the_block_is_raised(self, left_open, caplog):
        with pytest.raises(ZeroDivisionError), fenced_lock("a", ttl=30) as lease:
            left_open()
            raise ZeroDivisionError
        assert lease.trust not in heartbeat.of("default")._due
        assert "a was not released, it expires" in caplog.text

    def test_guard_commits_and_the_lease_is_released(self, rival):
        with fenced_lock("a", ttl=30) as lease, lease.guard(), connection.connection.pipeline():
            insert()
        assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (1,)
        with fenced_lock("a", ttl=30):
            pass
