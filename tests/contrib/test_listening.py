"""What stands for a key in a metric: few words, whatever the keys are."""

import functools
from enum import Enum, StrEnum
from uuid import UUID

import pytest
from django.contrib.auth.models import User

from django_dblock.contrib.receivers import (
    MOST_LABELS,
    OTHER,
    FewLabels,
    first_part,
    function_name,
)


class Status(Enum):
    PAID = "paid"


class Room(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ((("inventory", "sku-1"),), "inventory"),
        ((("inventory", 1), ("inventory", 2)), "inventory"),
        ((("inventory", 1), ("order", 2)), "(several)"),
        (((User(pk=1), "stock"),), "auth.user"),
        (((12345,),), "int"),
        (((UUID(int=5),),), "UUID"),
        (((Room.RED,),), "red"),
        (((Status.PAID,),), "Status"),
    ],
)
def test_the_first_part_says_what_kind_of_thing_is_locked(keys, word):
    found = first_part(keys)
    assert found == word
    assert type(found) is str


def test_however_many_keys_there_are_the_words_are_few():
    """``advisory_lock(f"user-{pk}")`` must not make a time series for each user."""
    label = FewLabels(first_part)
    found = {label(((f"user-{number}",),)) for number in range(3 * MOST_LABELS)}
    assert len(found) == MOST_LABELS + 1
    assert OTHER in found
    assert label((("user-1",),)) == "user-1", "what was known before stays"


def test_a_function_is_called_as_in_the_code():
    assert function_name(function_name) == "django_dblock.contrib.receivers.function_name"
    assert function_name(functools.partial(print)) == "functools.partial"
