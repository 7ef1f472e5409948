"""latch: it opens with the commit of its last part."""

import asyncio
import json
import pickle
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache import caches
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError

from django_dblock import LockTimeout, latch, purge_latches
from django_dblock.fencing.acquire import Attempt
from django_dblock.models import FencedTicket, LatchPart
from tests.app.models import Counter
from tests.helpers import observe
from tests.helpers.cancelling import cancel
from tests.helpers.processes import process, race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]


def imported(parties=3):
    return latch("import", 7, parties=parties)


def test_failed_count_rolls_its_transaction_back(rival):
    """Also if its error is caught; else COMMIT would be a rollback, and the hooks would run."""
    sent = []
    with rival.transaction():
        rival.execute("LOCK TABLE django_dblock_latchpart IN EXCLUSIVE MODE")
        with transaction.atomic():
            Counter.objects.create(name="loaded")
            transaction.on_commit(lambda: sent.append("acknowledged"))
            connection.cursor().execute("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(OperationalError, match="lock timeout"):
                imported().count_down(1)
    assert not Counter.objects.exists()
    assert sent == []


class TestParts:
    def test_latch_opens_with_the_last_part(self, statements):
        done = imported()
        assert repr(done) == "<latch import:7 parties=3>"
        for number in range(3):
            assert not done.done
            assert done.missing == 3 - number
            assert done.count_down(number)
        assert done.done
        assert done.parts == ("0", "1", "2")
        with statements() as sent:
            done.wait(timeout=0)
        assert len(sent) == 1
        with statements() as sent:
            assert not done.count_down(1)
        assert len(sent) == 1

    def test_part_counts_once(self):
        done = imported(2)
        assert done.count_down("a")
        assert not done.count_down("a")
        assert done.missing == 1

    def test_parts_of_different_types_differ(self):
        done = imported(2)
        assert done.count_down(3)
        assert done.count_down("3")
        assert done.done

    def test_part_beyond_parties_is_refused_and_writes_nothing(self, statements):
        done = imported(2)
        done.count_down("a")
        done.count_down("b")
        with statements() as sent, pytest.raises(ValueError, match="'c' is one part too many"):
            done.count_down("c")
        assert len(sent) == 1
        assert done.parts == ("a", "b")
        assert not done.count_down("a")
        assert not done.count_down("b")

    def test_callers_that_differ_in_parties_compare_with_their_own(self):
        few, many = imported(1), imported(2)
        many.count_down("a")
        assert (few.done, many.done) == (True, False)
        with pytest.raises(ValueError, match="too many"):
            few.count_down("b")
        many.count_down("b")
        assert (few.done, few.missing, many.done) == (True, 0, True)

    def test_surplus_part_inside_a_transaction_leaves_it_usable(self):
        imported(1).count_down("a")
        with transaction.atomic():
            with pytest.raises(ValueError, match="too many"):
                imported(1).count_down("b")
            Counter.objects.create(name="goes on")
        assert Counter.objects.exists()

    def test_named_parts_are_told_apart_from_missing_ones(self):
        done = imported(["a", "b", 3])
        assert done.parties == 3
        done.count_down("b")
        assert done.waiting_for == ("a", 3)
        assert done.missing == 2
        with pytest.raises(ValueError, match="none of the parts"):
            done.count_down("c")
        done.count_down("a")
        done.count_down(3)
        assert done.done

    def test_missing_parts_without_names_are_unknown(self):
        with pytest.raises(TypeError, match="number of parties"):
            _ = imported(2).waiting_for

    def test_other_keys_and_namespaces_are_independent(self, settings):
        imported(1).count_down("a")
        assert not latch("import", 8, parties=1).done
        settings.DBLOCK_NAMESPACE = "acme"
        assert not imported(1).done

    def test_reset_closes_the_latch_again(self):
        done = imported(1)
        done.count_down("a")
        assert done.reset() == 1
        assert not done.done

    @pytest.mark.parametrize(
        ("parties", "error"),
        [
            (0, ValueError),
            ([], ValueError),
            ("abc", TypeError),
            (b"abc", TypeError),
            (True, TypeError),
        ],
    )
    def test_wrong_parties_are_refused_before_sql(self, parties, error, statements):
        with statements() as sent, pytest.raises(error):
            imported(parties)
        assert len(sent) == 0


class TestTransactions:
    def test_rolled_back_part_does_not_count(self):
        done = imported(1)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            done.count_down("a")
            raise ZeroDivisionError
        assert not done.done

    def test_negative_twin_cache_counts_a_rolled_back_part(self):
        """A count beside the transaction, as Redis keeps it, opens early."""
        caches["default"].set("parts-missing", 1)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Counter.objects.create(name="part")
            caches["default"].decr("parts-missing")
            raise ZeroDivisionError
        assert caches["default"].get("parts-missing") == 0
        assert not Counter.objects.exists()
        caches["default"].clear()

    def test_wait_in_a_transaction_is_refused(self):
        with transaction.atomic(), pytest.raises(TransactionManagementError, match="own parts"):
            imported().wait(timeout=1)

    def test_serializable_parts_never_refuse_each_other(self):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            imported(2).count_down("a")
            assert race(1, count_down_serializable, "b") == [True]
        assert imported(2).done

    def test_two_parts_never_wait_for_each_other(self):
        with transaction.atomic():
            imported(2).count_down("a")
            assert race(1, count_down, "b") == [True]
        assert imported(2).done


class TestWaiting:
    def test_timeout_tells_how_many_parts_are_missing(self):
        done = imported(3)
        done.count_down("a")
        with pytest.raises(LockTimeout, match="2 of 3 parts that are missing") as caught:
            done.wait(timeout=0.05)
        assert caught.value.key == ("import", 7)
        assert caught.value.waited >= 0.05
        copy = pickle.loads(pickle.dumps(caught.value))
        assert str(copy) == str(caught.value)
        assert str(copy).startswith("The latch import:7 on database 'default' is kept closed by 2")
        assert "dblock list" not in str(copy)

    @pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
    def test_wrong_timeout_is_refused(self, timeout):
        with pytest.raises(ValueError, match="timeout"):
            imported().wait(timeout=timeout)

    def test_async_wait_ends_with_the_last_part(self):
        async def wait():
            await imported(1).wait_async(timeout=None)
            return await sync_to_async(lambda: imported(1).done)()

        timer = threading.Timer(0.05, count_and_close)
        timer.start()
        assert async_to_sync(wait)()
        timer.join()

    def test_cancellation_at_the_end_of_a_wait_stays_one(self, monkeypatch):
        original = Attempt.close
        imported(1).count_down(1)

        async def wait():
            task, loop = asyncio.current_task(), asyncio.get_running_loop()

            def close(attempt):
                original(attempt)
                cancel(task, loop)

            monkeypatch.setattr(Attempt, "close", close)
            await imported(1).wait_async(timeout=0)
            pytest.fail("the cancellation was swallowed")

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(wait)()

    @pytest.mark.processes
    def test_latch_opens_at_the_commit(self, observer):
        with process(count_slowly) as part:
            assert part.receive() == "counted"
            with process(wait) as waiter:
                assert waiter.receive() == "waits"
                observe.until(FencedTicket.objects.exists, "it queues")
                assert not imported(1).done
                part.send("commit")
                assert waiter.receive()

    @pytest.mark.processes
    def test_part_of_a_dead_process_does_not_count(self, observer):
        with process(count_slowly) as part:
            assert part.receive() == "counted"
            part.kill()
        observe.until(lambda: idle(observer), "its transaction is gone")
        assert not imported(1).done


def idle(observer):
    return not observer.execute(
        "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction'"
        " AND datname = current_database()"
    ).fetchall()


def count_down(_number, part):
    return imported(2).count_down(part)


def count_down_serializable(_number, part):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        return imported(2).count_down(part)


def count_and_close():
    imported(1).count_down("a")
    connection.close()


def count_slowly(channel):
    with transaction.atomic():
        imported(1).count_down("a")
        channel.send("counted")
        channel.receive()


def wait(channel):
    channel.send("waits")
    imported(1).wait(timeout=60)
    return imported(1).done


class TestPurge:
    @pytest.fixture(autouse=True)
    def _rows(self, observer):
        imported().count_down("a")
        imported().count_down("b")
        latch("fresh", parties=2).count_down("a")
        observer.execute(
            "UPDATE django_dblock_latchpart SET done_at = done_at - interval '31 days'"
            " WHERE latch = 'import:7'"
        )
        latch("half", parties=2).count_down("a")
        observer.execute(
            "UPDATE django_dblock_latchpart SET done_at = done_at - interval '31 days'"
            " WHERE latch = 'half'"
        )
        latch("half", parties=2).count_down("b")

    def test_latch_is_purged_as_a_whole(self):
        assert purge_latches() == 2
        names = LatchPart.objects.order_by("pk").values_list("latch", flat=True)
        assert list(names) == ["fresh", "half", "half"]
        assert str(LatchPart.objects.first()) == "fresh: a"

    def test_idle_time_below_an_hour_is_refused(self):
        with pytest.raises(ValueError, match="hour"):
            purge_latches(idle=60)

    def test_purge_command_counts_and_removes_latches(self, capsys):
        call_command("dblock", "purge", "--kind", "latches", "--json", "--dry-run")
        assert json.loads(capsys.readouterr().out) == {"latches": {"idle": 2, "removed": 0}}
        call_command("dblock", "purge", "--kind", "latches")
        assert "2 of 2 rows of latches removed." in capsys.readouterr().out
