"""once_per: one run in each period, by the database's clock, through failures and deaths."""

import signal
from datetime import UTC, date, datetime, timedelta
from unittest.mock import patch
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache import caches
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from django_dblock import (
    IdempotencyInProgress,
    IdempotencyKey,
    OncePer,
    Period,
    missed,
    once_per,
)
from django_dblock.coordination.once_per import _Calendar
from django_dblock.idempotency.outcome import in_progress
from django_dblock.idempotency.run_once import identity_of
from tests.app.fenced import Account
from tests.app.models import Counter
from tests.helpers.crashes import crash_at, stopping
from tests.helpers.processes import process, race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.loss,
    pytest.mark.server,
    pytest.mark.usefixtures("within_a_period"),
]

VIENNA = ZoneInfo("Europe/Vienna")


def at(text):
    return datetime.fromisoformat(text)


class TestPeriods:
    """Fixed dates: the label, and the instants of start and end in UTC."""

    @pytest.mark.parametrize(
        ("per", "tz", "moment", "label", "start", "end"),
        [
            ("day", "UTC", "2026-03-01T00:00Z", "2026-03-01", "2026-03-01T00Z", "2026-03-02T00Z"),
            # the day's last moment in Vienna, in winter
            (
                "day",
                "Europe/Vienna",
                "2026-01-14T22:59:59Z",
                "2026-01-14",
                "2026-01-13T23Z",
                "2026-01-14T23Z",
            ),
            # a day of 23 hours
            (
                "day",
                "Europe/Vienna",
                "2026-03-29T12:00Z",
                "2026-03-29",
                "2026-03-28T23Z",
                "2026-03-29T22Z",
            ),
            # a day of 25 hours
            (
                "day",
                "Europe/Vienna",
                "2026-10-25T12:00Z",
                "2026-10-25",
                "2026-10-24T22Z",
                "2026-10-25T23Z",
            ),
            # an hour that comes twice is one period of two hours
            (
                "hour",
                "Europe/Vienna",
                "2026-10-25T00:30Z",
                "2026-10-25T02:00",
                "2026-10-25T00Z",
                "2026-10-25T02Z",
            ),
            (
                "hour",
                "Europe/Vienna",
                "2026-10-25T01:30Z",
                "2026-10-25T02:00",
                "2026-10-25T00Z",
                "2026-10-25T02Z",
            ),
            (
                "15 min",
                "Europe/Vienna",
                "2026-10-25T01:20Z",
                "2026-10-25T02:15",
                "2026-10-25T00:15Z",
                "2026-10-25T01:30Z",
            ),
            # the hour before it has one hour
            (
                "hour",
                "Europe/Vienna",
                "2026-10-24T23:10Z",
                "2026-10-25T01:00",
                "2026-10-24T23Z",
                "2026-10-25T00Z",
            ),
            # midnight doesn't exist: the day begins at one
            (
                "day",
                "Africa/Cairo",
                "2026-04-24T10:00Z",
                "2026-04-24",
                "2026-04-23T22Z",
                "2026-04-24T21Z",
            ),
            # two o'clock to three doesn't exist: of these periods a part does
            (
                "45 min",
                "Europe/Vienna",
                "2026-03-29T00:45Z",
                "2026-03-29T01:30",
                "2026-03-29T00:30Z",
                "2026-03-29T01Z",
            ),
            (
                "40 min",
                "Europe/Vienna",
                "2026-03-29T01:10Z",
                "2026-03-29T02:40",
                "2026-03-29T01Z",
                "2026-03-29T01:20Z",
            ),
            (
                "20 min",
                "Australia/Lord_Howe",
                "2026-10-03T15:30Z",
                "2026-10-04T02:20",
                "2026-10-03T15:30Z",
                "2026-10-03T15:40Z",
            ),
            (
                "week",
                "Europe/Vienna",
                "2027-01-03T10:00Z",
                "2026-W53",
                "2026-12-27T23Z",
                "2027-01-03T23Z",
            ),
            ("month", "UTC", "2026-02-28T10:00Z", "2026-02", "2026-02-01T00Z", "2026-03-01T00Z"),
            ("month", "UTC", "2026-12-31T23:59Z", "2026-12", "2026-12-01T00Z", "2027-01-01T00Z"),
            (
                "6 hours",
                "UTC",
                "2026-02-28T17:59Z",
                "2026-02-28T12:00",
                "2026-02-28T12Z",
                "2026-02-28T18Z",
            ),
        ],
    )
    def test_label_start_and_end_of_a_period(self, per, tz, moment, label, start, end):
        period = _Calendar(per, tz).period_of(at(moment))
        assert str(period) == label
        assert (period.start, period.end) == (at(start), at(end))

    @pytest.mark.parametrize(
        ("per", "tz", "since", "until", "labels"),
        [
            (
                "hour",
                "Europe/Vienna",
                "2026-03-28T23:00Z",
                "2026-03-29T03:00Z",
                ["2026-03-29T00:00", "2026-03-29T01:00", "2026-03-29T03:00", "2026-03-29T04:00"],
            ),
            (
                "hour",
                "Europe/Vienna",
                "2026-10-24T22:00Z",
                "2026-10-25T03:00Z",
                ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00"],
            ),
            (
                "45 min",
                "Europe/Vienna",
                "2026-03-29T00:30Z",
                "2026-03-29T01:45Z",
                ["2026-03-29T01:30", "2026-03-29T03:00"],
            ),
            (
                "40 min",
                "Europe/Vienna",
                "2026-03-29T00:20Z",
                "2026-03-29T02:00Z",
                ["2026-03-29T01:20", "2026-03-29T02:40", "2026-03-29T03:20"],
            ),
            # a day that Samoa never had
            (
                "day",
                "Pacific/Apia",
                "2011-12-28T10:00Z",
                "2011-12-31T10:00Z",
                ["2011-12-28", "2011-12-29", "2011-12-31"],
            ),
            ("month", "UTC", "2026-01-01T00:00Z", "2026-03-15T00:00Z", ["2026-01", "2026-02"]),
            ("week", "UTC", "2026-01-05T00:00Z", "2026-01-20T00:00Z", ["2026-W02", "2026-W03"]),
            ("day", "UTC", "2026-01-05T00:01Z", "2026-01-07T23:00Z", ["2026-01-06"]),
        ],
    )
    def test_each_existing_period_is_listed_once(self, per, tz, since, until, labels):
        found = list(_Calendar(per, tz).periods(at(since), at(until)))
        assert [period.label for period in found] == labels

    def test_every_moment_of_a_year_lies_in_its_period(self):
        for per in ("day", "hour", "15 min", "week", "month", "6 hours"):
            calendar = _Calendar(per, VIENNA)
            moment = datetime(2026, 1, 1, tzinfo=UTC)
            while moment.year == 2026:
                period = calendar.period_of(moment)
                assert period.start <= moment < period.end
                moment += timedelta(minutes=437)

    def test_djangos_time_zone_is_the_default(self, settings):
        settings.TIME_ZONE = "Asia/Tokyo"
        assert _Calendar("day", None).period_of(at("2026-01-01T16:00Z")).label == "2026-01-02"

    @pytest.mark.parametrize("per", ["7 min", "0 min", "daily", "1 min ", "25 hours", ""])
    def test_wrong_period_is_refused(self, per):
        with pytest.raises(ValueError, match="is not a period"):
            once_per(per, key="a")

    def test_wrong_arguments_are_refused_before_sql(self, statements):
        with statements() as sent:
            with pytest.raises(TypeError, match="callable"):
                once_per(7, key="a")
            with pytest.raises(ValueError, match="keep"):
                once_per("day", key="a", keep=0)
            with pytest.raises(ValueError, match="wait"):
                once_per("day", key="a", wait=-1)
            with pytest.raises(TypeError):
                once_per("day", key=1.5)
            with pytest.raises(ValueError, match="keep"):
                once_per("day", key="a", keep=36_601)
            with pytest.raises(ValueError, match="mode='leas'"):
                once_per("day", key="a", mode="leas")
            with pytest.raises(ValueError, match="on_abandoned='retry'"):
                once_per("day", key="a", mode="lease", on_abandoned="retry")
            with pytest.raises(ValueError, match="lease=0"):
                once_per("day", key="a", mode="lease", lease=0)
            with pytest.raises(ValueError, match="are for mode='lease'"):
                once_per("day", key="a", lease=60)
            with pytest.raises(TypeError, match="lease"):
                once_per("day", key="a")(coroutine)
        assert len(sent) == 0


async def coroutine(period, handle):
    return await handle_step(period)


async def handle_step(period):
    return f"async {period}"


async def pay():
    return "paid"


def count(period):
    Counter.objects.create(name=f"run {period.label} {Counter.objects.count()}")
    return {"label": period.label}


def job(**more):
    return once_per("day", **{"key": "settlement", "tz": "UTC", **more})(count)


class TestRuns:
    def test_job_runs_once_in_a_period_and_again_in_the_next(self, monkeypatch):
        settle = job()
        times = iter(map(at, ["2026-01-01T10:00Z", "2026-01-01T23:59:59Z", "2026-01-02T00:00Z"]))
        monkeypatch.setattr(once_per, "now", lambda self: next(times))
        assert settle() == {"label": "2026-01-01"}
        assert settle() == {"label": "2026-01-01"}
        assert Counter.objects.count() == 1
        assert settle.run().state == "ran"
        assert Counter.objects.count() == 2

    def test_job_has_name_key_and_period_of_its_function(self):
        settle = job()
        assert isinstance(settle, OncePer)
        assert settle.__name__ == "count"
        assert settle.key == ("settlement",)
        assert settle.period().label == f"{datetime.now(UTC):%Y-%m-%d}"

    def test_second_run_is_done_with_the_same_result(self):
        settle = job()
        first, second = settle.run(), settle.run()
        assert (first.state, second.state) == ("ran", "done")
        assert first.result == second.result

    def test_period_is_read_from_the_databases_clock(self, statements):
        with statements() as sent:
            job()()
        assert "clock_timestamp" in sent.captured_queries[0]["sql"]
        with statements() as sent:
            job()()
        assert len(sent) == 4  # the clock, BEGIN, the claim that finds the result, COMMIT

    def test_failed_run_leaves_the_period_due(self):
        @once_per("day", key="settlement")
        def settle(period):
            Counter.objects.create(name="half")
            if fails:
                raise ZeroDivisionError
            return "done"

        fails = True
        with pytest.raises(ZeroDivisionError):
            settle()
        assert not Counter.objects.exists()
        fails = False
        assert settle() == "done"

    def test_negative_twin_set_nx_records_a_rolled_back_run(self):
        """The negative twin: a cache key with SET NX says done, and nothing was done."""

        def settle():
            if not caches["default"].add("settlement:2026-01-01", 1, 86_400):
                return "done"
            with transaction.atomic():
                Counter.objects.create(name="half")
                raise ZeroDivisionError

        caches["default"].clear()
        with pytest.raises(ZeroDivisionError):
            settle()
        assert settle() == "done"
        assert not Counter.objects.exists()
        caches["default"].clear()

    @pytest.mark.parametrize("is_async", [False, True])
    def test_request_in_progress_inside_the_job_is_its_error(self, is_async):
        """Only a run of this job counts as running; the job's own wait for another one failed."""
        busy = in_progress(identity_of(("another job",), None), 1)

        def settle(period):
            raise busy

        async def settle_async(period, run):
            raise busy

        with pytest.raises(IdempotencyInProgress) as caught:
            if is_async:
                job = once_per("day", key="settlement", mode="lease")(settle_async)
                async_to_sync(job)()
            else:
                once_per("day", key="settlement")(settle)()
        assert caught.value is busy

    @pytest.mark.parametrize("is_async", [False, True])
    def test_run_that_was_taken_over_reports_the_other_run(self, is_async):
        """This call has lost its lease; the process that has taken the period over is running."""

        def take_over():
            IdempotencyKey.objects.update(
                claim=uuid4(), token=F("token") + 1, locked_until=Now() + timedelta(hours=1)
            )

        def settle(period, run):
            take_over()
            run.run_step("pay", lambda: None)

        async def settle_async(period, run):
            await sync_to_async(take_over)()
            await run.arun_step("pay", pay)

        job = once_per("day", key="settlement", mode="lease")(settle_async if is_async else settle)
        found = async_to_sync(job.run)() if is_async else job.run()
        assert (found.state, found.result) == ("running", None)

    def test_callable_names_its_own_periods(self):
        @once_per(lambda now: f"shift-{now:%Y}", key="a", keep=timedelta(hours=1))
        def shift(period):
            return period.label

        assert shift() == f"shift-{datetime.now(UTC):%Y}"
        assert shift.period() == Period(f"shift-{datetime.now(UTC):%Y}")
        with pytest.raises(TypeError, match="callable"):
            shift.missed(since=date(2026, 1, 1))
        with pytest.raises(TypeError):
            once_per(lambda now: 1.5, key="a")(count)()

    def test_callables_period_of_a_year_runs_once(self, observer):
        """Nobody knows when it ends, so the record is kept for longer than a year."""
        run = once_per(lambda now: "fiscal year", key="a")(count)
        run()
        observer.execute(
            "UPDATE django_dblock_idempotencykey SET created_at = created_at - p,"
            " completed_at = completed_at - p, expires_at = expires_at - p"
            " FROM make_interval(days => 366) p"
        )
        assert run.run().state == "done"

    def test_record_outlives_its_period(self):
        once_per("month", key="a", keep=timedelta(seconds=1))(count)()
        row = IdempotencyKey.objects.get()
        end = _Calendar("month", None).period_of(row.created_at).end
        assert row.expires_at >= end

    @pytest.mark.parametrize("named", [lambda row: row, lambda row: ("quarter", (2026, row))])
    def test_callables_instance_is_its_row_whatever_its_text(self, named):
        """Else the job would run again in a period that somebody has renamed."""
        quarter = Account.objects.create(name="Q")
        with (
            patch.object(Account, "__str__", lambda self: self.name),
            patch.object(Account, "__repr__", lambda self: self.name),
        ):
            settle = once_per(lambda now: named(quarter), key="a")(lambda period: 1)
            assert settle.run().state == "ran"
            quarter.name = "R"
            assert settle.run().state == "done"

    def test_rows_whose_readable_text_is_the_same_are_different_periods(self):
        row = Account.objects.create(name="Q1")
        parts = iter([("a:b", "c"), ("a", "b:c"), ("x" * 300, "c"), ("x" * 300, "d")])
        calendar = _Calendar(lambda now: (*next(parts), row), None)
        assert len({calendar.period_of(datetime.now(UTC)).label for _ in range(4)}) == 4

    def test_longest_keep_is_kept_as_long_as_possible(self):
        run = once_per("day", key="a", keep=36_600)(count)
        assert run.run().state == "ran"

    def test_callable_gets_utc_whatever_the_moments_zone(self):
        """Else the same moment would have two periods."""
        run = once_per(lambda now: f"{now:%Y-%m-%d}", key="a")(count)
        assert run.run_for(at("2026-01-01T00:30+01:00")) == {"label": "2025-12-31"}

    def test_job_in_lease_mode_gets_a_handle(self):
        @once_per("day", key="a", mode="lease")
        def call(period, run):
            with run.step("pay") as step:
                step.result = f"paid {period}"
            return step.result

        assert call() == call() == f"paid {call.period()}"

    def test_async_job_runs_once(self):
        @once_per("day", key="a", mode="lease")
        async def call(period, run):
            return f"async {period}"

        assert async_to_sync(call)() == f"async {call.period()}"
        assert async_to_sync(call.run)().state == "done"
        assert async_to_sync(call.run_for)(date(2026, 1, 1)) == "async 2026-01-01"


class TestMissed:
    def test_periods_without_a_finished_run_are_missed(self, monkeypatch):
        monkeypatch.setattr(once_per, "now", lambda self: at("2026-01-05T10:00Z"))
        settle = job(keep=30)
        settle.run_for(date(2026, 1, 2))
        settle.run_for(at("2026-01-04T12:00Z"))
        found = missed("settlement", per="day", since=date(2026, 1, 1), tz="UTC")
        assert [period.label for period in found] == ["2026-01-01", "2026-01-03"]
        for period in found:
            assert settle.run_for(period) == {"label": period.label}
        assert settle.missed(since=date(2026, 1, 1)) == []
        assert Counter.objects.count() == 4

    def test_namespaces_are_independent(self, monkeypatch, settings):
        monkeypatch.setattr(once_per, "now", lambda self: at("2026-01-02T10:00Z"))
        job().run_for(date(2026, 1, 1))
        assert job().missed(since=date(2026, 1, 1)) == []
        settings.DBLOCK_NAMESPACE = "acme"
        assert len(job().missed(since=date(2026, 1, 1))) == 1

    def test_missed_is_at_most_two_statements(self, statements):
        with statements() as sent:
            missed("settlement", per="day", since=datetime.now(UTC) - timedelta(days=3))
        assert len(sent) == 2
        with statements() as sent:
            assert missed("settlement", per="day", since=datetime.now(UTC)) == []
        assert len(sent) == 1

    def test_since_before_the_retention_is_refused(self):
        with pytest.raises(ValueError, match="longer ago than keep"):
            job(keep=3).missed(since=datetime.now(UTC) - timedelta(days=4))

    def test_naive_moment_is_refused(self):
        with pytest.raises(ValueError, match="no time zone"):
            missed("settlement", per="day", since=datetime(2026, 1, 1))

    def test_text_instead_of_a_moment_is_refused(self):
        with pytest.raises(TypeError, match="neither an aware datetime nor a date"):
            missed("settlement", per="day", since="2026-01-01")
        with pytest.raises(TypeError, match="neither an aware datetime nor a date"):
            job().run_for("2026-01-01")

    def test_missed_periods_of_a_callable_are_refused(self):
        with pytest.raises(TypeError, match="callable"):
            missed("settlement", per=str, since=date(2026, 1, 1))

    def test_day_begins_in_djangos_time_zone(self, monkeypatch, settings):
        settings.TIME_ZONE = "Asia/Tokyo"
        monkeypatch.setattr(once_per, "now", lambda self: at("2026-01-03T10:00Z"))
        [period] = missed("a", per="day", since=date(2026, 1, 2))
        assert (period.start, period.end) == (at("2026-01-01T15:00Z"), at("2026-01-02T15:00Z"))


def settle_slowly(channel):
    @once_per("day", key="settlement")
    def settle(period):
        Counter.objects.create(name="slowly")
        channel.send("runs")
        channel.receive()
        return "slowly"

    return settle()


def settle_at_once(_number=0, wait=0):
    def settle(period):
        Counter.objects.create(name=f"at once {_number}")
        return "at once"

    return once_per("day", key="settlement", wait=wait)(settle)()


def settle_async():
    @once_per("day", key="settlement", mode="lease")
    async def settle(period, run):
        return "async"

    return async_to_sync(settle.run)()


def settle_stopping(channel):
    """The first pod, which can be ended at each statement."""
    with stopping(channel):
        return settle_at_once("first")


def settle_apart(channel):
    """The negative twin: the record has a transaction of its own, after the settlement's."""
    with stopping(channel):
        with transaction.atomic():
            Counter.objects.create(name="apart")
        return once_per("day", key="settlement")(lambda period: "apart")()


@pytest.mark.processes
class TestCrashes:
    @pytest.mark.parametrize("how", ["SIGKILL", "pg_terminate_backend"])
    def test_crash_at_any_statement_leaves_one_settlement(self, how, observer):
        seen = []
        while (what := crash_at(len(seen), how, observer, settle_stopping)) is not None:
            seen.append(what)
            committed = Counter.objects.count()
            assert committed == (what == "after COMMIT"), what
            assert settle_at_once("next") == "at once"
            [settled] = Counter.objects.values_list("name", flat=True)
            assert settled == ("at once first" if committed else "at once next"), what
            Counter.objects.all().delete()
            IdempotencyKey.objects.all().delete()
        assert seen.count("before COMMIT") == seen.count("after COMMIT") == 1
        assert len(seen) > 4

    def test_negative_twin_separate_record_settles_twice(self, observer):
        stops, settled = 0, []
        while crash_at(stops, "SIGKILL", observer, settle_apart) is not None:
            settle_at_once("next")
            settled.append(Counter.objects.count())
            Counter.objects.all().delete()
            IdempotencyKey.objects.all().delete()
            stops += 1
        assert max(settled) == 2


@pytest.mark.processes
class TestProcesses:
    def test_call_during_another_run_returns_none(self):
        with process(settle_slowly) as other:
            assert other.receive() == "runs"
            assert settle_at_once() is None
            other.send("go on")
            assert other.receive() == "slowly"
        assert settle_at_once() == "slowly"

    def test_async_call_during_another_run_reports_running(self):
        with process(settle_slowly) as other:
            assert other.receive() == "runs"
            assert settle_async().state == "running"
            other.send("go on")
            other.receive()

    def test_waiter_takes_over_from_a_dead_run(self):
        with process(settle_slowly) as other:
            assert other.receive() == "runs"
            other.signal(signal.SIGKILL)
            assert settle_at_once(wait=60) == "at once"
        assert Counter.objects.count() == 1

    def test_five_pods_make_one_run(self):
        results = race(5, settle_at_once, 60)
        assert results == ["at once"] * 5
        assert Counter.objects.count() == 1
