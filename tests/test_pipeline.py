"""psycopg's pipeline mode: what Django does in it, and why this package refuses it.

``tests/contract/test_backends.py`` has every operation in a pipeline, behind each backend.
"""

import psycopg
import pytest
from django.db import IntegrityError, NotSupportedError, connection
from psycopg.pq import PipelineStatus

from django_dblock import fenced_lock
from django_dblock.core.application_name import named
from django_dblock.core.connection import fetch
from django_dblock.core.simple_query import send
from django_dblock.fencing.store import Place, durable_together
from tests.app.models import Counter
from tests.app.versioned import Product

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

INSERT = "INSERT INTO app_counter (name, value) VALUES (%s, 1)"


@pytest.fixture
def pipeline():
    connection.ensure_connection()
    with connection.connection.pipeline() as found:
        assert connection.connection.info.pipeline_status == PipelineStatus.ON
        yield found


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

    def test_save_of_a_row_that_is_there_inserts(self, pipeline):
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
    def test_statement_is(self, pipeline):
        with pytest.raises(NotSupportedError, match="'default' is in psycopg's pipeline mode"):
            fetch(connection, "SELECT 1", {})

    def test_message_of_several_statements_is(self, pipeline):
        with pytest.raises(NotSupportedError):
            send(connection, "SELECT %(one)s", parameters={"one": 1})

    def test_statements_of_a_lease_are(self, pipeline):
        place = Place(named(("a",)), "a", "default")
        with pytest.raises(NotSupportedError):
            durable_together(place, "taken", ["SELECT 1", "SELECT 2"], {})

    def test_release_is_and_the_lease_is_held(self):
        with fenced_lock("a", ttl=30) as lease:
            with connection.connection.pipeline(), pytest.raises(NotSupportedError):
                lease.release()
            lease.check()

    def test_way_in_is(self, pipeline):
        with pytest.raises(NotSupportedError), fenced_lock("a", ttl=30):
            pass

    def test_versioned_write_is(self):
        product = Product.objects.create(name="a")
        with connection.connection.pipeline():
            for act in (product.save, product.touch_version, product.delete_cas):
                with pytest.raises(NotSupportedError):
                    act()
            with pytest.raises(NotSupportedError):
                Product.objects.bulk_save_cas([product], ["stock"])
