"""django-simple-history: the check leaves its models alone, and a state can be brought back."""

import pytest
from django.core.checks import run_checks

pytest.importorskip("simple_history")

from django_dblock import StaleObject
from tests.stacks.history.models import Contract

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_check_complains():
    assert [each for each in run_checks() if each.id.startswith("dblock.E02")] == []


def test_each_state_is_kept_with_its_version():
    contract = Contract.objects.create(title="a")
    contract.title = "b"
    contract.save()
    assert list(contract.history.order_by("history_id").values_list("title", "version")) == [
        ("a", 1), ("b", 2),
    ]  # fmt: skip


def test_old_state_is_brought_back_against_the_present_version():
    contract = Contract.objects.create(title="a")
    contract.title = "b"
    contract.save()
    old = contract.history.earliest().instance
    old.save_cas(expected=contract.version)
    assert Contract.objects.values_list("title", "version").get() == ("a", 3)
    with pytest.raises(StaleObject):
        contract.history.earliest().instance.save_cas(expected=contract.version)


def test_conflict_leaves_no_history():
    contract = Contract.objects.create(title="a")
    Contract.objects.update(title="theirs")
    with pytest.raises(StaleObject):
        contract.save()
    assert contract.history.count() == 1
