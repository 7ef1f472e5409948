"""Each checker passes what is right and finds what is wrong: hand-made, for each invariant."""

import pytest

from tests.faults import checkers
from tests.faults.checkers import Entry
from tests.faults.history import FAIL, OK, UNKNOWN, Operation, Writer, notes, read

pytestmark = pytest.mark.faults


def operation(number, act="add", outcome=OK, began=0.0, ended=1.0, **data):
    return Operation(str(number), act, began, ended, outcome, {"name": "a", **data})


def entry(number, left, *, change=1, token=0, name="a"):
    return Entry(str(number), name, change, left, token)


def invariants(found):
    return [violation.invariant for violation in found]


def test_every_outcome_that_was_told_right_passes():
    history = [operation(1), operation(2, outcome=FAIL), operation(3, outcome=UNKNOWN)]
    assert checkers.outcomes(history, ["1"]) == []
    assert checkers.outcomes(history, ["1", "3"]) == []


def test_1_an_acknowledged_write_that_is_not_there_is_lost():
    [found] = checkers.outcomes([operation(1), operation(2)], ["1"])
    assert (found.invariant, found.count) == (1, 1)


def test_1_a_write_that_is_there_twice_or_unasked_is_a_phantom():
    assert invariants(checkers.outcomes([operation(1)], ["1", "1"])) == [1]
    assert invariants(checkers.outcomes([operation(1)], ["1", "9"])) == [1]


@pytest.mark.parametrize(("moved", "violations"), [(2, 0), (3, 0), (1, 1), (5, 2)])
def test_1_a_number_moves_by_what_was_acknowledged_and_at_most_by_what_is_unknown_more(
    moved, violations
):
    found = checkers.bounds(2, 1, moved, "a")
    assert sum(violation.count for violation in found) == violations


def test_1_an_overwritten_update_is_lost():
    assert checkers.lost_updates([entry(1, 1), entry(2, 2)], 0, 2, "a") == []
    [found] = checkers.lost_updates([entry(1, 1), entry(2, 1), entry(3, 2)], 0, 2, "a")
    assert (found.invariant, found.count) == (1, 1)


def test_1_an_update_that_is_lost_at_the_end_counts_too():
    [found] = checkers.lost_updates([entry(1, 1), entry(2, 2)], 0, 1, "a")
    assert found.count == 1


def test_2_stock_is_conserved():
    assert checkers.stock([entry(1, 8, change=-2), entry(2, 9, change=1)], 10, 9, "a") == []
    [found] = checkers.stock([entry(1, 8, change=-2), entry(2, 7, change=-3)], 10, 7, "a")
    assert (found.invariant, found.count) == (2, 2)


def test_2_stock_is_never_below_0():
    found = checkers.stock([entry(1, -1, change=-2), entry(2, 1, change=2)], 1, 1, "a")
    assert invariants(found) == [2]


def test_2_money_is_conserved():
    assert checkers.conserved(300, 300, "the money") == []
    assert checkers.conserved(300, 290, "the money")[0].count == 10


def test_3_a_key_is_charged_once():
    assert checkers.charges({"a": 1, "b": 1}, ["a"]) == []  # b's answer was lost
    assert invariants(checkers.charges({"a": 2}, ["a"])) == [3]
    assert invariants(checkers.charges({}, ["a"])) == [3]


def test_3_replays_are_equal():
    assert checkers.replays({"a": ["x", "x"], "b": ["y"]}) == []
    assert invariants(checkers.replays({"a": ["x", "y"]})) == [3]


def test_4_nothing_is_written_under_a_superseded_token():
    good = [entry(1, 1, token=5), entry(2, 2, token=5), entry(3, 1, token=2, name="b")]
    assert checkers.superseded(good) == []
    [found] = checkers.superseded([*good, entry(4, 3, token=6), entry(5, 4, token=5)])
    assert (found.invariant, found.count) == (4, 1)


def grant(number, token, began, ended, **more):
    return operation(number, "acquire", began=began, ended=ended, token=token, **more)


def test_5_tokens_grow_in_real_time():
    assert checkers.tokens([grant(1, 7, 0, 1), grant(2, 9, 2, 3)]) == []
    assert invariants(checkers.tokens([grant(1, 9, 0, 1), grant(2, 7, 2, 3)])) == [5]


def test_5_grants_at_the_same_time_may_come_in_any_order():
    assert checkers.tokens([grant(1, 9, 0, 2), grant(2, 7, 1, 3)]) == []


def test_5_a_grant_is_compared_with_all_before_it_and_not_with_the_last():
    grants = [grant(1, 9, 0, 1), grant(2, 3, 0, 2), grant(3, 5, 3, 4)]
    assert invariants(checkers.tokens(grants)) == [5]


def test_5_a_token_is_granted_once():
    assert invariants(checkers.tokens([grant(1, 7, 0, 2), grant(2, 7, 1, 3)])) == [5]
    assert checkers.tokens([grant(1, 7, 0, 2), grant(2, 7, 1, 3, name="b")]) == []


def test_5_a_grant_that_failed_is_none():
    failed = operation(1, "acquire", FAIL, 0, 1)
    assert checkers.tokens([failed, grant(2, 7, 2, 3)]) == []


def test_5_nobody_trusts_a_superseded_lease():
    grants = [grant(1, 7, 0, 1), grant(2, 9, 2, 3)]
    while_held = operation(3, "check", began=2.5, ended=9, token=7)
    after = operation(4, "check", began=3.5, ended=9, token=7)
    told = operation(5, "check", FAIL, began=3.5, ended=9, token=7)
    assert checkers.trust([while_held, told], grants) == []
    assert invariants(checkers.trust([after], grants)) == [5]


def test_6_at_rest_nothing_is_left():
    assert checkers.rest(locks=0, held=[], threads=[], connections=[]) == []
    left = checkers.rest(locks=1, held=["a"], threads=["t"], connections=["c"])
    assert invariants(left) == [6] * 4


def test_7_a_version_counts_the_acknowledged_saves():
    saves = [operation(1), operation(2), operation(3, outcome=UNKNOWN), operation(4, outcome=FAIL)]
    assert checkers.versions(1, 3, saves, "a") == []
    assert checkers.versions(1, 4, saves, "a") == []
    assert invariants(checkers.versions(1, 2, saves, "a")) == [7]
    assert invariants(checkers.versions(1, 5, saves, "a")) == [7]


def test_8_what_was_told_to_have_failed_is_not_there():
    assert invariants(checkers.outcomes([operation(1, outcome=FAIL)], ["1"])) == [8]


def test_9_nobody_commits_beside_a_writer():
    reader, late = (entry(number, 0, token=5, change=0) for number in (1, 3))
    writer = entry(2, 0, token=6)
    assert checkers.beside_a_writer([reader, writer]) == []
    assert invariants(checkers.beside_a_writer([reader, writer, late])) == [9]


def test_every_invariant_has_a_red_example():
    """The names above say which; so none is left without one."""
    shown = {
        int(name.split("_")[1]) for name in globals() if name[:5] == "test_" and name[5].isdigit()
    }
    assert shown == set(checkers.INVARIANTS)


def test_the_token_checker_takes_hundreds_of_thousands():
    """It is O(n log n): a quadratic one would run into the test's timeout."""
    many = [grant(number, number, number, number + 0.5) for number in range(200_000)]
    assert checkers.tokens(many) == []


# The history


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_an_error_before_commit_is_a_failure_and_one_after_it_is_unknown(folder):
    writer = Writer(folder / "worker-0-0.jsonl", "0.0")
    with writer.operation("add", name="a") as done:
        done.answer["left"] = 3
    with pytest.raises(ZeroDivisionError), writer.operation("add"):
        raise ZeroDivisionError
    with pytest.raises(ConnectionError), writer.operation("add") as doubtful:
        doubtful.committing()
        raise ConnectionError
    first, second, third = read(folder)
    assert (first.outcome, first.data["left"], first.data["name"]) == (OK, 3, "a")
    assert (second.outcome, second.data["error"]) == (FAIL, "ZeroDivisionError")
    assert (third.outcome, third.data["error"]) == (UNKNOWN, "ConnectionError")


def test_an_operation_whose_worker_died_is_unknown(folder):
    writer = Writer(folder / "worker-0-0.jsonl", "0.0")
    writer._line("0.0:1", "invoke", act="add", name="a")
    with (folder / "worker-0-0.jsonl").open("a") as file:
        file.write('{"id": "0.0:1", "kin')  # it was killed while it wrote
    [found] = read(folder)
    assert (found.outcome, found.ended) == (UNKNOWN, None)


def test_what_a_worker_brought_on_itself_is_no_operation(folder):
    Writer(folder / "worker-0-0.jsonl", "0.0").note("stop", seconds=0.5)
    assert read(folder) == []
    assert [note["kind"] for note in notes(folder)] == ["stop"]
