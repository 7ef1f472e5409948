"""The search for an order: what it must find, what it must let pass, and what it may cost."""

import random
from math import inf

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.faults import linear
from tests.faults.history import FAIL, OK, UNKNOWN, Operation

pytestmark = pytest.mark.faults


def did(act, token, began, ended, outcome=OK, **data):
    number = f"{act} {token} {began} {ended} {outcome} {sorted(data.items())}"
    return Operation(number, act, began, ended, outcome, {"name": "a", "token": token, **data})


def acquire(token, began, ended, **more):
    return did("acquire", token, began, ended, **more)


def check(token, began, ended, **more):
    return did("check", token, began, ended, **more)


def renew(token, began, ended, **more):
    return did("renew", token, began, ended, **more)


def release(token, began, ended, *, had=True, **more):
    return did("release", token, began, ended, had=had, **more)


def lost(token, began, ended, act="check", outcome=FAIL):
    return did(act, token, began, ended, outcome, error="LockLost")


def holds(*history, **bounds):
    found = linear.judge(history, **bounds)
    assert not found.undecided
    return not found.violations


RED = {
    "a check after a greater grant": [acquire(5, 0, 1), acquire(6, 2, 3), check(5, 4, 5)],
    "a renewal after a greater grant": [acquire(5, 0, 1), acquire(6, 2, 3), renew(5, 4, 5)],
    "a release that had it after a greater grant": [
        acquire(5, 0, 1), acquire(6, 2, 3), release(5, 4, 5),
    ],
    "one that somebody has used already": [
        acquire(5, 0, 1), acquire(6, 2, 9), check(6, 3, 4), check(5, 5, 6),
    ],
    "a token twice": [acquire(5, 0, 4), acquire(5, 1, 3)],
    "a token that goes back": [acquire(6, 0, 1), acquire(5, 2, 3)],
    "tokens that go back between what overlaps": [
        acquire(6, 0, 3), acquire(7, 2, 5), check(6, 4, 6), check(7, 1, 3),
    ],
    "a lease that was lost, and used": [acquire(5, 0, 1), lost(5, 2, 3), check(5, 4, 5)],
    "a lease that a renewal was told is lost, and used": [
        acquire(5, 0, 1), lost(5, 2, 3, "renew", UNKNOWN), check(5, 4, 5),
    ],
    "a lease that was lost, and given back as if it were not": [
        acquire(5, 0, 1), lost(5, 2, 3), release(5, 4, 5),
    ],
    "a lease that was given back, and used": [acquire(5, 0, 1), release(5, 2, 3), check(5, 4, 5)],
    "a lease that was given back twice": [acquire(5, 0, 1), release(5, 2, 3), release(5, 4, 5)],
    "a lease that nobody was granted": [check(5, 0, 1)],
    "a lease that was given back before anybody was granted it": [release(5, 0, 1, had=False)],
    "a grant before the time of another is over": [acquire(5, 0, 1, ttl=10), acquire(6, 2, 3)],
    "a grant before the time of a renewal is over": [
        acquire(5, 0, 1, ttl=10), renew(5, 8, 9, ttl=10), acquire(6, 12, 13),
    ],
    "a grant too early, though somebody gave back a lease before": [
        acquire(5, 0, 1, ttl=10), release(5, 2, 3), acquire(6, 4, 5, ttl=10), acquire(7, 6, 7),
    ],
}  # fmt: skip

GREEN = {
    "grants at the same time, the later answer first": [acquire(6, 0, 3), acquire(5, 1, 4)],
    "a grant that is answered after the next one, which began before it": [
        acquire(7, 1, 2), acquire(6, 1.5, 9), check(7, 3, 4),
    ],
    "a check that ends long after a greater grant": [
        acquire(5, 0, 1), check(5, 2, 9), acquire(6, 3, 4), check(6, 5, 6),
        release(5, 9, 10, had=False),
    ],
    "a frozen holder that is told": [
        acquire(5, 0, 1), acquire(6, 2, 3), lost(5, 4, 5), release(5, 6, 7, had=False),
        check(6, 8, 9),
    ],
    "a grant whose answer came when others had had it": [
        acquire(5, 0, 9), acquire(6, 1, 2), release(6, 3, 4), acquire(7, 5, 6), lost(5, 10, 11),
    ],
    "an unknown acquire that was granted": [
        acquire(5, 0, 1), did("acquire", None, 2, 3, UNKNOWN), acquire(9, 4, 5), check(9, 6, 7),
    ],
    "an unknown acquire that was not": [
        acquire(5, 0, 1), did("acquire", None, 2, None, UNKNOWN), check(5, 4, 5),
    ],
    "an unknown release that happened late": [
        acquire(5, 0, 1, ttl=10), did("release", 5, 2, 3, UNKNOWN), check(5, 4, 5),
        acquire(6, 6, 7),
    ],
    "an unknown release that never happened": [
        acquire(5, 0, 1), did("release", 5, 2, 3, UNKNOWN), check(5, 4, 5), renew(5, 6, 7),
    ],
    "an unknown renewal": [acquire(5, 0, 1), renew(5, 2, None, outcome=UNKNOWN), acquire(6, 4, 5)],
    "an acquire that failed": [acquire(5, 0, 1), acquire(6, 2, 3, outcome=FAIL), check(5, 4, 5)],
    "a grant when the time is over": [acquire(5, 0, 1, ttl=10), acquire(6, 9, 10)],
    "a grant at once when it was given back": [
        acquire(5, 0, 1, ttl=10), release(5, 2, 3), acquire(6, 4, 5, ttl=10),
    ],
    "a lost lease that was given back all the same": [
        acquire(5, 0, 1, ttl=10), lost(5, 2, 3), release(5, 4, 5, had=False), acquire(6, 6, 7),
    ],
}  # fmt: skip


@pytest.mark.parametrize("window", [1, 2, 2_000])
@pytest.mark.parametrize("what", RED)
def test_it_finds(what, window):
    [violation] = linear.judge(RED[what], window).violations
    assert (violation.invariant, violation.count) == (5, 1)
    assert "no order explains a:" in violation.text


@pytest.mark.parametrize("window", [1, 2, 2_000])
@pytest.mark.parametrize("what", GREEN)
def test_it_lets_pass(what, window):
    assert holds(*GREEN[what], window=window)


@pytest.mark.parametrize("what", RED)
def test_each_red_one_is_red_for_its_last_operation(what):
    """Else something besides what its name says could be wrong with it."""
    assert holds(*RED[what][:-1])


def test_names_have_nothing_to_do_with_each_other():
    other = [acquire(5, 0, 1, name="b"), check(5, 4, 5, name="b")]
    assert holds(*other, acquire(6, 2, 3))
    history = [*other, *RED["a token that goes back"]]
    assert len(linear.judge(history).violations) == 1


def test_it_says_where_it_is_stuck():
    [violation] = linear.judge(RED["a check after a greater grant"]).violations
    assert "after token 6 none of use 5 (check 5 4 5 ok []) has a place" in violation.text


# Against all orders of a few operations


def end(operation):
    """When it was answered; what is unknown never was, but for a loss."""
    unknown = operation.outcome == UNKNOWN and "error" not in operation.data
    return inf if unknown else operation.ended


def explained(history):
    """Whether an order explains it: by trying them all, with rules of its own and no memory."""
    return some_order(
        [each for each in history if each.outcome != FAIL or "error" in each.data], []
    )


def some_order(left, past):
    if all(end(operation) == inf for operation in left):
        return True
    for operation in left:
        others = [other for other in left if other is not operation]
        if any(end(other) < operation.began for other in others):
            continue
        for token in possible_tokens(operation):
            if fits(operation, token, past) and some_order(others, [*past, (operation, token)]):
                return True
    return False


def possible_tokens(operation):
    if operation.act == "acquire" and operation.outcome == UNKNOWN:
        return [number + 0.5 for number in range(6)]  # any that fits in between
    return [operation.data["token"]]


def fits(operation, token, past):
    granted = [was for before, was in past if before.act == "acquire"]
    if operation.act == "acquire":
        return all(was < token for was in granted) and in_time(operation, past)
    if operation.outcome == UNKNOWN and operation.act != "release" and end(operation) == inf:
        return True
    if "error" in operation.data or not operation.data.get("had", operation.outcome == OK):
        # What was lost was granted, or somebody else has a later one.
        return any(was >= token and was == int(was) for was in granted)
    told = [before for before, was in past if before.act != "acquire" and was == token]
    gone = any(before.act == "release" or "error" in before.data for before in told)
    return token == max(granted, default=None) and not gone


def in_time(operation, past):
    """Whether the latest grant that somebody was told of was given back, or may have expired."""
    grants = [was for before, was in past if before.act == "acquire" and before.outcome == OK]
    of_it = [before for before, was in past if grants and was == grants[-1]]
    if any(before.act == "release" for before in of_it):
        return True
    times = [
        before.began + before.data["ttl"] * 0.95
        for before in of_it
        if "ttl" in before.data and before.outcome == OK
    ]
    return end(operation) >= max(times, default=-inf)


@st.composite
def anything(draw):
    """Up to six operations, in any disorder."""
    times, found = st.integers(0, 7), []
    for number in range(draw(st.integers(1, 6))):
        act = draw(st.sampled_from(["acquire", "acquire", "check", "renew", "release", "lost"]))
        began, ended = sorted([draw(times), draw(times)])
        outcome = draw(st.sampled_from([OK, OK, OK, UNKNOWN, FAIL]))
        data = {"name": "a", "token": draw(st.integers(1, 4))}
        if act == "lost":
            act, outcome, data["error"] = "check", FAIL, "LockLost"
        if act in ("acquire", "renew") and draw(st.booleans()):
            data["ttl"] = draw(st.integers(1, 5))
        if act == "release" and outcome == OK:
            data["had"] = draw(st.booleans())
        found.append(Operation(str(number), act, began, ended, outcome, data))
    return found


@st.composite
def what_could_be(draw):
    """What a real lease would have answered; the operations around those moments overlap."""
    at, token, holder, until, found = 0, 0, False, 0, []
    for number in range(draw(st.integers(1, 6))):
        at += draw(st.integers(0, 2))
        act = draw(st.sampled_from(["acquire", "check", "renew", "release", "lost"]))
        if not holder or (act == "acquire" and not draw(st.integers(0, 2))):
            act = "acquire"
        elif act == "acquire":
            act = "check"
        data = {"name": "a"}
        if act == "acquire":
            at, token, holder = max(at, until), token + 1, True
        if act in ("acquire", "renew"):
            data["ttl"] = draw(st.integers(0, 4))
            until = max(until, at + data["ttl"])
        outcome = draw(st.sampled_from([OK, OK, OK, UNKNOWN]))
        if act == "release":
            holder, until = False, 0
            data |= {"had": True} if outcome == OK else {}
        if act == "lost":
            act, outcome, data["error"], holder = "check", FAIL, "LockLost", False
        if act == "acquire" and outcome == UNKNOWN:
            holder = False
        began, ended = at - draw(st.integers(0, 2)), at + draw(st.integers(0, 2))
        found.append(Operation(str(number), act, began, ended, outcome, data | {"token": token}))
    return found


@settings(max_examples=200, deadline=None)
@given(what_could_be(), st.integers(1, 6))
def test_what_a_lease_can_answer_passes(history, window):
    assert explained(history)
    assert holds(*history, window=window)


@settings(max_examples=400, deadline=None)
@given(st.one_of(anything(), what_could_be()), st.integers(1, 6), st.data())
def test_it_agrees_with_all_orders_wherever_it_is_cut(history, window, data):
    changed = data.draw(st.sampled_from(history))
    changed.data["token"] = data.draw(st.integers(1, 5))
    expected = explained(history)
    event(f"an order explains it: {expected}")
    assert holds(*history) == expected
    assert holds(*history, window=window) == expected


# Windows


def cuts(history, size):
    calls = sorted(filter(None, map(linear.read, history)), key=lambda call: call.began)
    return list(linear._windows(calls, size))


def test_a_window_ends_where_nothing_is_under_way():
    history = [acquire(5, 0, 1), check(5, 2, 3), check(5, 4, 7), check(5, 6, 8), check(5, 9, 10)]
    assert cuts(history, 3) == [(0, 2), (2, 5)]
    assert cuts(history, 5) == [(0, 5)]


def test_what_is_unknown_does_not_keep_a_window_open():
    history = [acquire(5, 0, 1), did("release", 5, 2, 3, UNKNOWN), acquire(6, 4, 5), check(6, 6, 7)]
    assert cuts(history, 3) == [(0, 3), (3, 4)]


def test_a_window_that_never_rests_is_cut_at_its_size_and_nothing_is_lost():
    frozen = [acquire(1, 0, 2), lost(1, 1, 99)]
    history = [*frozen, acquire(2, 3, 5), check(2, 4, 7), acquire(3, 6, 9), check(3, 8, 10)]
    assert cuts(history, 3) == [(0, 3), (3, 6)]
    assert holds(*history, window=3)
    assert not holds(*history, check(2, 11, 12), window=3)


# What it costs


def busy(operations):
    """Four workers at one name; now and then one is frozen, or dies giving it back."""
    dice = random.Random(7)
    found, at, token = [], 0.0, 0
    while len(found) < operations:
        token += 1
        found.append(acquire(token, at, at + dice.uniform(0.1, 3), ttl=0.4))
        for _ in range(dice.randint(1, 8)):
            at += dice.uniform(3, 4)
            act = dice.choice([check, check, renew])
            found.append(act(token, at, at + dice.choice([0.1, 1, 2])))
        at += 4
        end = dice.choice(["release", "dies", "is frozen"])
        if end == "release":
            found.append(release(token, at, at + 1.5))
        elif end == "dies":
            found.append(did("release", token, at, None, UNKNOWN))
        else:
            found.append(lost(token, at, at + 40))
        at += 0.9
    return found[:operations]


def test_a_window_of_two_thousand_operations_takes_about_as_many_configurations():
    found = linear.judge(busy(2_000))
    assert (found.violations, found.undecided, found.operations) == ([], 0, 2_000)
    assert found.windows == 1
    assert found.configurations < 3 * 2_000


def test_so_do_windows_of_which_every_end_has_to_be_found():
    found = linear.judge(busy(10_000))
    assert (found.violations, found.undecided, found.operations) == ([], 0, 10_000)
    assert found.windows >= 5
    assert found.configurations < 10 * 10_000


def many_at_once(number=12):
    """No order, which is known when all subsets have been tried."""
    return [*(acquire(token, 0, 9) for token in range(1, number + 1)), check(number + 1, 0, 9)]


def test_what_takes_too_long_is_undecided_and_not_green():
    found = linear.judge(many_at_once(), bound=100)
    assert (found.violations, found.undecided, found.operations) == ([], 1, 0)
    assert found.configurations == 100
    assert len(linear.judge(many_at_once(), bound=5_000).violations) == 1


def test_with_a_window_the_rest_of_its_name_is_undecided_and_no_other():
    later = [check(99, at, at + 0.5) for at in range(10, 20)]
    other = [acquire(5, 0, 1, name="b"), check(5, 2, 3, name="b")]
    found = linear.judge([*many_at_once(), *later, *other], window=13, bound=100)
    assert (found.violations, found.undecided, found.windows) == ([], 1 + 1, 3)
    assert found.operations == len(other)
    assert found.counts == {
        "operations": 2, "windows": 3, "undecided": 2, "configurations": 100 + 3,
    }  # fmt: skip
