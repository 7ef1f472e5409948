"""database_time(): the database's clock, set for jobs."""

from datetime import UTC, date, datetime, timedelta

import pytest
from django.test import TestCase

from django_dblock import missed, once_per
from django_dblock.testing import database_time

AT_NIGHT = datetime(2020, 10, 25, 1, tzinfo=UTC)


def job(seen):
    @once_per("day", key="settlement", tz="Europe/Vienna")
    def settle(period):
        seen.append(period.label)

    return settle


class InATestCase(TestCase):
    def test_job_runs_once_in_the_frozen_period(self):
        seen = []
        settle = job(seen)
        for hours in (0, 12, 21, 22, 45):  # of a day with 25 hours, of which 3 are over
            with database_time(AT_NIGHT + timedelta(hours=hours)):
                settle()
        assert seen == ["2020-10-25", "2020-10-26"]

    def test_missed_periods_end_at_the_frozen_moment(self):
        settle = job([])
        with database_time(AT_NIGHT):
            settle()
        with database_time(AT_NIGHT + timedelta(days=2)):
            since = date(2020, 10, 25)
            [period] = missed("settlement", per="day", since=since, tz="Europe/Vienna")
            assert period.label == "2020-10-26"

    def test_outside_the_block_the_databases_clock_counts(self):
        settle = job([])
        with database_time(AT_NIGHT):
            assert settle.period().label == "2020-10-25"
        assert settle.period().label != "2020-10-25"

    def test_naive_moment_is_refused(self):
        naive = AT_NIGHT.replace(tzinfo=None)
        with pytest.raises(ValueError, match="no time zone"), database_time(naive):
            self.fail("it is no moment")
