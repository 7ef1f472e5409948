"""django-oscar: stock is checked and allocated under a lock; an order is placed once."""

import pytest


@pytest.fixture(scope="module")
def found(run_program):
    return run_program("oscar_shop", needs=("oscar",))


def test_buyers_who_looked_at_once_are_promised_too_much(found):
    assert found["lost"] > found["bells"]


def test_under_the_lock_no_more_is_promised_than_there_is(found):
    assert found["kept"] == found["bells"]


def test_basket_that_is_submitted_twice_is_one_order(found):
    assert found["orders"] == 1
    assert len(set(found["numbers"])) == 1
    assert len(found["numbers"]) == 4


def test_without_run_once_a_second_submission_is_an_error(found):
    assert "already an order" in found["again"]
