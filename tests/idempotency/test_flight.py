"""The same request twice at once, in real processes: one runs, the other is answered."""

import pytest
from django.db import connection

from tests.app import idempotent_views as views
from tests.helpers import observe, processes
from tests.idempotency import calling, pages
from tests.idempotency.calling import effects, rows
from tests.idempotency.test_table import is_replay, problem

pytestmark = pytest.mark.django_db(transaction=True)


def slowly(channel, *, joined, fails=False):
    """Run the view, and stop inside it until the test goes on."""

    def during():
        channel.send("inside")
        channel.receive()
        if fails:
            raise RuntimeError

    try:
        (calling.ask_joined if joined else calling.ask)(pages.slow(during))
    except RuntimeError:
        return "failed"
    return "done"


def fails_slowly(channel):
    return slowly(channel, joined=False, fails=True)


def runs_slowly(channel, joined):
    return slowly(channel, joined=joined)


def holds_after_the_view(channel):
    """As ``ATOMIC_REQUESTS``: the view is over, and its transaction is not."""
    from django.db import transaction

    with transaction.atomic():
        calling.ask(pages.slow(lambda: None))
        channel.send("over")
        channel.receive()


@pytest.mark.parametrize("theirs", ["own", "joined"])
def test_a_request_in_flight_is_answered_at_once(ask, theirs):
    with processes.process(runs_slowly, theirs == "joined") as first:
        assert first.receive() == "inside"
        answer = ask(pages.slow(lambda: None))
        assert problem(answer) == (409, "in_progress")
        assert answer.headers["Retry-After"] == "1"
        assert ask(pages.slow(lambda: None), key="other").status_code == 201
        first.send("go on")
        assert first.receive() == "done"
    again = ask(pages.slow(lambda: None))
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert effects() == 2


def test_it_is_in_flight_until_the_outer_commit(ask):
    with processes.process(holds_after_the_view) as first:
        assert first.receive() == "over"
        assert problem(ask(pages.slow(lambda: None))) == (409, "in_progress")
        first.send("commit")
        first.receive()
    assert ask(pages.slow(lambda: None)).headers["Idempotent-Replayed"] == "true"


def waits(channel, joined):
    answer = (calling.ask_joined if joined else calling.ask)(pages.patient, "201")
    return answer.status_code, answer.headers.get("Idempotent-Replayed")


def answers_slowly(channel, how):
    """The patient view's first run, which the test ends."""

    def answer(request, value):
        channel.send("inside")
        channel.receive()
        return views.answers(request, how) if how.isdigit() else views.ANSWERS[how](request, value)

    views.ANSWERS["201"] = answer
    asked = calling.request("201")
    try:
        # "201" is a status to the view; what is run under its address is ours.
        return pages.idempotent(scope=views.client)(lambda request, how: answer(request, 0))(
            asked, "201"
        ).status_code
    except RuntimeError:
        return "failed"


@pytest.mark.parametrize("joined", [False, True], ids=["own", "joined"])
@pytest.mark.parametrize(("how", "replayed"), [("201", "true"), ("500", None), ("crash", None)])
def test_who_waits_gets_the_answer_or_runs_where_there_is_none(joined, how, replayed, observer):
    with processes.process(answers_slowly, how) as first:
        assert first.receive() == "inside"
        with processes.process(waits, joined) as second:
            observe.until_blocked(observer)
            first.send("go on")
            first.receive()
            assert second.receive() == (201, replayed)
    assert (effects(), rows()) == (1, 1)


def test_a_wait_that_is_over_is_a_409(ask):
    with processes.process(answers_slowly, "201") as first:
        assert first.receive() == "inside"
        assert problem(ask(pages.impatient)) == (409, "in_progress")
        first.send("go on")
        first.receive()
    first = ask(pages.impatient)
    assert first.headers["Idempotent-Replayed"] == "true"
    assert is_replay(ask(pages.impatient), of=first) is False


def test_who_waits_does_not_wait_with_another_request(ask):
    """The row of a request that is over is seen without the lock: 422 comes before 409."""
    ask(pages.patient)
    assert problem(ask(pages.patient, body=b"other")) == (422, "key_reused")


def test_a_run_that_is_killed_leaves_nothing_and_the_retry_runs(ask, observer):
    with processes.process(runs_slowly, False) as first:
        assert first.receive() == "inside"
        first.kill()
    observe.until(lambda: not observe.locks(observer), "the server notices")
    assert ask(pages.slow(lambda: None)).status_code == 201
    assert (effects(), rows()) == (1, 1)


def test_a_backend_that_is_killed_takes_the_effects_and_the_key_with_it(rival):
    def during():
        rival.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])

    with pytest.raises(Exception, match=r"terminat|closed"):
        calling.ask(pages.slow(during))
    connection.close()
    assert (effects(), rows()) == (0, 0)


def one_of_many(number):
    return calling.ask(views.default).status_code


def test_many_at_once_have_one_effect():
    answers = processes.race(6, one_of_many)
    assert set(answers) <= {201, 409}
    assert 201 in answers
    assert effects() == 1


def unprotected(number, barrier_key):
    """The negative twin: no key, so nothing keeps the requests apart."""
    return calling.ask(pages.optional, key=None).status_code


def test_without_a_key_the_same_race_has_an_effect_for_each():
    calling.ask(pages.optional, key=None)  # the row is there, so that nobody fails to make it
    assert processes.race(3, unprotected, "") == [201] * 3
    assert rows() == 0
