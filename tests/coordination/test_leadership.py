"""leadership: one leader at a time, whose successor is elected at once."""

import asyncio
import threading
import time

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError, connection, transaction

from django_dblock import (
    FencedLock,
    LockLost,
    OpenTransaction,
    StandbyDatabase,
    fenced_lock,
    leader,
    leadership,
    signals,
)
from django_dblock.fencing import acquire, store
from tests.app.models import Counter
from tests.coordination.rows import expire, held
from tests.fencing.helpers import beat_now, in_a_thread
from tests.helpers import observe, queueing
from tests.helpers.cancelling import cancel
from tests.helpers.processes import process

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

NAME = "scheduler~leader"


def campaign(**more):
    return leadership("scheduler", **{"ttl": 30, **more})


def test_term_is_a_lease_that_ends_with_the_body():
    for term in campaign(metadata={"version": 3}):
        assert held(NAME) == [0]
        found = leader("scheduler")
        assert found.token == term.token
        assert found.metadata == {"version": 3}
        assert 0 < found.remaining <= 30
        assert found.since < found.expires_at
        with term.guard():
            Counter.objects.create(name="led")
        break
    assert held(NAME) == []
    assert leader("scheduler") is None


def test_each_term_of_a_loop_has_a_greater_token():
    tokens = []
    for term in campaign():
        tokens.append(term.token)
        if len(tokens) == 3:
            break
    assert tokens == sorted(set(tokens))


def test_error_in_the_body_resigns_and_propagates():
    with pytest.raises(ZeroDivisionError):
        for _term in campaign():
            raise ZeroDivisionError
    assert held(NAME) == []


def test_return_resigns():
    def lead():
        for term in campaign():
            return term
        return None

    assert not lead().lost
    assert held(NAME) == []


def test_leadership_is_independent_of_a_lock_on_the_same_key():
    elected = []
    with fenced_lock("scheduler", ttl=30):
        for term in campaign():
            elected.append(term)
            break
    assert len(elected) == 1


def test_leader_that_lost_its_term_campaigns_again(observer):
    terms = []
    for term in campaign():
        with term:
            terms.append(term)
            if len(terms) == 2:
                break
            expire(observer, NAME)
            with term.guard():
                Counter.objects.create(name="stale")
    assert [term.lost for term in terms] == [True, False]
    assert not Counter.objects.exists()


def test_loss_outside_the_terms_block_propagates(observer):
    with pytest.raises(LockLost):
        for term in campaign():
            expire(observer, NAME)
            with term.guard():
                pass


def test_leader_whose_thread_has_ended_expires():
    """Nobody can end the body of the loop any more, so nobody would ever resign."""
    terms = iter(campaign(ttl=1.5))
    term = in_a_thread(lambda: next(terms))
    assert held(NAME) == [0]
    beat_now()
    observe.until(lambda: term.lost, "it is told at the next beat")
    assert "the thread that entered the block has ended" in term.trust.reason
    observe.until(lambda: held(NAME) == [], "it expires")
    terms.close()


def test_loss_of_another_lease_propagates(observer):
    with pytest.raises(LockLost, match="other"):
        for term in campaign():
            with term, fenced_lock("other", ttl=30) as lock:
                expire(observer, "other")
                with lock.guard():
                    pass


class TestStop:
    def test_stopped_candidate_sends_nothing(self, statements):
        stop = threading.Event()
        stop.set()
        with statements() as sent:
            assert list(campaign(stop=stop)) == []
            assert list(campaign(stop=lambda: True)) == []
        assert len(sent) == 0

    def test_wrong_stop_is_refused(self):
        with pytest.raises(TypeError, match="stop must be an event or a callable, not int"):
            campaign(stop=3)

    @pytest.mark.parametrize("kind", ["event", "callable"])
    def test_waiting_candidate_is_stopped_at_once(self, kind, monkeypatch):
        tried, stop = threading.Event(), threading.Event()

        def refuse(*_):
            tried.set()
            return store.Refusal(3600, 1, "somebody")

        monkeypatch.setattr(store, "acquire", refuse)
        monkeypatch.setattr("random.uniform", lambda *_: 3600)
        stopping = threading.Thread(target=lambda: (tried.wait(observe.LIMIT), stop.set()))
        stopping.start()
        assert list(campaign(stop=stop if kind == "event" else stop.is_set)) == []
        stopping.join()
        assert tried.is_set()

    def test_stop_in_the_body_ends_the_loop(self):
        stop = threading.Event()
        for _term in campaign(stop=stop):
            stop.set()
        assert held(NAME) == []


class TestWithoutADatabase:
    def test_candidate_goes_on_trying(self, monkeypatch, caplog):
        original, errors = store.acquire, [OperationalError("gone"), OperationalError("starting")]

        def acquire(*arguments):
            if errors:
                raise errors.pop()
            return original(*arguments)

        monkeypatch.setattr(store, "acquire", acquire)
        monkeypatch.setattr("django_dblock.coordination.leadership._SHORTEST_BREAK", 0.001)
        for _term in campaign():
            break
        assert caplog.text.count("trying again") == 2

    def test_stop_ends_the_wait_for_the_database(self, monkeypatch):
        stop = threading.Event()

        def acquire(*_):
            stop.set()
            raise OperationalError("gone")

        monkeypatch.setattr(store, "acquire", acquire)
        assert list(campaign(stop=stop)) == []

    def test_stop_of_a_queued_candidate_keeps_its_ticket(self, monkeypatch, caplog):
        """Its ticket can't be given back; it expires by itself."""
        stop = threading.Event()
        answers = [store.Refusal(3600, 1, "somebody")] * 2

        def acquire(*_):
            if answers:
                return answers.pop()
            return store.Refusal(0, 1, "somebody")

        def drop_ticket(*_):
            raise OperationalError("gone")

        def look(*_, **__):
            stop.set()
            return store.Look(queued=True, ahead=0, refusal=None)

        monkeypatch.setattr(store, "acquire", acquire)
        monkeypatch.setattr(store, "look", look)
        monkeypatch.setattr(store, "drop_ticket", drop_ticket)
        assert list(campaign(stop=stop)) == []
        assert "keeps its place in the queue" in caplog.text

    @pytest.mark.django_db
    def test_error_propagates_in_a_testcase(self, monkeypatch):
        def acquire(*_):
            raise OperationalError("gone")

        monkeypatch.setattr(store, "acquire", acquire)
        with pytest.raises(OperationalError):
            list(campaign())

    def test_connection_that_the_server_ended_is_replaced(self, observer):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            [pid] = cursor.fetchone()
        observer.execute("SELECT pg_terminate_backend(%s)", [pid])
        elected = []
        for term in campaign():
            elected.append(term)
            break
        assert [term.lost for term in elected] == [False]


def test_open_transaction_is_refused():
    with transaction.atomic(), pytest.raises(OpenTransaction):
        next(iter(campaign()))


def test_signal_names_kind_and_key():
    heard = []

    def hear(signal, sender, **data):
        heard.append((data["kind"], data["name"]))

    signals.lock_acquired.connect(hear)
    try:
        for _term in campaign():
            break
    finally:
        signals.lock_acquired.disconnect(hear)
    assert heard == [("leader", "scheduler")]


def test_term_is_two_statements_and_leader_one(statements):
    for _term in campaign():
        break
    with statements() as sent:
        for _term in campaign():
            break
    assert len(sent) == 2
    with statements() as sent:
        leader("scheduler")
    assert len(sent) == 1


class TestAsync:
    def test_each_async_term_has_a_greater_token(self):
        async def lead():
            tokens = []
            async for term in campaign():
                tokens.append(term.token)
                if len(tokens) == 2:
                    break
            return tokens

        first, second = async_to_sync(lead)()
        assert first < second
        assert held(NAME) == []

    def test_lost_term_cancels_the_block_and_campaigns_again(self, observer):
        async def lead():
            terms = []
            async for term in campaign(ttl=30):
                async with term:
                    terms.append(term)
                    if len(terms) == 2:
                        break
                    await sync_to_async(term.trust.lose)("lost for the test")
                    await asyncio.sleep(60)
            return [term.lost for term in terms]

        assert async_to_sync(lead)() == [True, False]

    def test_loss_noticed_at_the_end_campaigns_again(self):
        async def lead():
            terms = 0
            async for term in campaign():
                async with term:
                    terms += 1
                    if terms == 2:
                        break
                    term.trust.lose("lost for the test")
            return terms

        assert async_to_sync(lead)() == 2

    def test_cancelled_leader_resigns(self):
        async def lead():
            async for term in campaign():
                async with term:
                    asyncio.current_task().cancel()
                    await asyncio.sleep(60)

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(lead)()
        assert held(NAME) == []

    def test_leader_cancelled_at_the_end_of_the_block_resigns(self):
        async def lead():
            async for term in campaign():
                async with term:
                    asyncio.current_task().cancel()

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(lead)()
        assert held(NAME) == []

    def test_other_error_propagates(self):
        async def lead():
            async for term in campaign():
                async with term:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            async_to_sync(lead)()

    @pytest.mark.parametrize("kind", ["asyncio", "threading"])
    def test_waiting_candidate_is_stopped(self, kind, monkeypatch):
        monkeypatch.setattr(store, "acquire", lambda *_: store.Refusal(3600, 1, "somebody"))
        monkeypatch.setattr("random.uniform", lambda *_: 3600)

        async def lead():
            stop = asyncio.Event() if kind == "asyncio" else threading.Event()
            asyncio.get_running_loop().call_later(0.05, stop.set)
            return [term async for term in campaign(stop=stop)]

        assert async_to_sync(lead)() == []

    @pytest.mark.parametrize("stop", [None, threading.Event, asyncio.Event])
    def test_candidate_is_woken_when_the_leader_resigns(self, stop, monkeypatch, observer):
        """By itself it would look again after a minute."""
        monkeypatch.setattr(acquire, "_SIGN", 60.0)
        terms = iter(campaign())
        next(terms)

        def resign():
            asked = "SELECT count(*) FROM django_dblock_fencedticket"
            try:
                observe.until(lambda: observer.execute(asked).fetchone() == (1,), "it queues")
                queueing.until_somebody_listens()
            finally:
                terms.close()

        async def lead():
            async for term in campaign(stop=stop and stop()):
                return term.token
            return None

        with queueing.no_listener_is_left():
            resigning = queueing.in_a_thread(resign)
            began = time.monotonic()
            assert async_to_sync(lead)() > 0
            assert time.monotonic() - began < 60
            resigning.join()

    def test_candidate_goes_on_trying(self, monkeypatch, caplog):
        original, errors = store.acquire, [OperationalError("gone"), OperationalError("starting")]

        def acquire(*arguments):
            if errors:
                raise errors.pop()
            return original(*arguments)

        async def lead():
            async for _term in campaign():
                return "elected"
            return None

        monkeypatch.setattr(store, "acquire", acquire)
        monkeypatch.setattr("django_dblock.coordination.leadership._SHORTEST_BREAK", 0.001)
        assert async_to_sync(lead)() == "elected"
        assert caplog.text.count("trying again") == 2

    def test_candidate_cancelled_during_its_election_resigns(self, monkeypatch):
        async def lead():
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            original = store.acquire

            def acquire(*arguments):
                cancel(task, loop)
                return original(*arguments)

            monkeypatch.setattr(store, "acquire", acquire)
            async for _term in campaign():
                pytest.fail("cancelled before")

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(lead)()
        assert held(NAME) == []

    @pytest.mark.parametrize("moment", ["once", "close"])
    def test_candidate_cancelled_with_an_error_or_at_the_end_stops(self, moment, monkeypatch):
        async def lead():
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            original = getattr(acquire.Attempt, moment)

            def act(attempt):
                result = original(attempt)
                cancel(task, loop)
                if moment == "once":
                    raise StandbyDatabase(**attempt.place.facts)
                return result

            monkeypatch.setattr(acquire.Attempt, moment, act)
            async for _term in campaign():
                pytest.fail("cancelled before")

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(lead)()
        assert moment == "once" or held(NAME) == []

    def test_leader_cancelled_while_it_resigns_campaigns_no_more(self, monkeypatch):
        terms = []

        async def lead():
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            original = store.release

            def release(*arguments, **more):
                cancel(task, loop)
                return original(*arguments, **more)

            monkeypatch.setattr(store, "release", release)
            async for term in campaign():
                terms.append(term)
                if len(terms) == 2:
                    pytest.fail("the cancellation was swallowed")

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(lead)()
        assert held(NAME) == []

    def test_candidate_cancelled_while_waiting_holds_nothing(self, monkeypatch):
        async def lead():
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()

            def acquire(*_):
                cancel(task, loop)
                return store.Refusal(3600, 1, "somebody")

            monkeypatch.setattr(store, "acquire", acquire)
            async for _term in campaign():
                pytest.fail("cancelled before")

        with pytest.raises(asyncio.CancelledError):
            async_to_sync(lead)()


def lead_until_told(channel, ttl=30):
    for term in campaign(ttl=ttl):
        channel.send(term.token)
        channel.receive()
        return term.token
    return None


@pytest.mark.processes
class TestProcesses:
    def test_standby_is_elected_when_the_leader_resigns(self):
        with process(lead_until_told) as first:
            token = first.receive()
            with process(lead_until_told) as second:
                first.send("resign")
                assert second.receive() > token
                second.send("resign")
                second.receive()
            first.receive()

    def test_dead_leader_is_replaced_after_its_ttl(self):
        with process(lead_until_told, 0.5) as first:
            token = first.receive()
            first.kill()
            started = time.monotonic()
            for term in campaign():
                assert term.token > token
                break
            assert time.monotonic() - started < 30

    def test_leader_shows_the_other_process(self):
        with process(lead_until_told) as other:
            token = other.receive()
            assert leader("scheduler").token == token
            assert str(other.pid) in leader("scheduler").owner
            other.send("resign")
            other.receive()
        assert FencedLock.objects.get(name=NAME).token == token
