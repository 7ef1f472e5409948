"""Labels of metrics: few values, whatever the keys are."""

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
def test_label_is_the_first_part_of_the_key(keys, word):
    found = first_part(keys)
    assert found == word
    assert type(found) is str


def test_number_of_labels_is_bounded():
    """``advisory_lock(f"user-{pk}")`` must not make a time series for each user."""
    label = FewLabels(first_part)
    found = {label(((f"user-{number}",),)) for number in range(3 * MOST_LABELS)}
    assert len(found) == MOST_LABELS + 1
    assert OTHER in found
    assert label((("user-1",),)) == "user-1", "what was known before stays"


def test_function_label_is_its_qualified_name():
    assert function_name(function_name) == "django_dblock.contrib.receivers.function_name"
    assert function_name(functools.partial(print)) == "functools.partial"
