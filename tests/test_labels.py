"""Labels in application_name: readable where possible, marked if cut, at most 63 bytes."""

from datetime import UTC, datetime
from enum import Enum

import pytest
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import SafeString
from hypothesis import example, given
from hypothesis import strategies as st

from django_dblock.core import application_name as labels
from django_dblock.core.application_name import (
    MAX_APPLICATION_NAME,
    compose,
    named,
    names,
    read,
)
from django_dblock.keys import encode, key_id
from tests.app.models import Counter, Seat
from tests.helpers.some_keys import keys

application_names = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=63)


class Suit(Enum):
    HEARTS = "hearts"


class Loud(int):
    """An int that has its own ideas of how it is written."""

    def __str__(self):
        raise AssertionError("asked")

    __repr__ = __format__ = __index__ = to_bytes = bit_length = __str__


def number(key, namespace=""):
    return key_id(encode(key), namespace)


def name(key):
    return labels.name(named(key))


def label(key, number, mode):
    return labels.label(named(key), number, mode)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (("inventory", "sku-1"), "inventory:sku-1"),
        (("account", 7), "account:7"),
        (("a", True), "a:True"),
        ((Loud(7), SafeString("a"), SimpleLazyObject(lambda: "b")), "7:a:b"),
        ((SimpleLazyObject(lambda: 8),), "8"),
        ((b"\x00\xff",), "0x00ff"),
        ((Suit.HEARTS,), "hearts"),
        ((("a", ("b", 1)), "c"), "(a:(b:1)):c"),
        (("two\nlines",), "two\\nlines"),
        (("\udc80",), "\\udc80"),
        (("ü🔒",), "ü🔒"),
        ((datetime(2026, 1, 31, tzinfo=UTC),), "2026-01-31 00:00:00+00:00"),
        (("a" * 300,), "a" * 199 + "…"),
        ((10**10_000,), hex(10**10_000)[:200]),
    ],
)
def test_errors_name_keys_readably(key, shown):
    assert name(key) == shown


def test_overrides_of_a_subclass_do_not_change_the_key():
    assert encode((Loud(7),)) == encode((7,))


@pytest.mark.django_db
def test_later_changes_of_an_instance_keep_its_name():
    counter = Counter.objects.create(pk=5, name="x")
    key = named((counter,))
    counter.delete()
    assert labels.name(key) == "app.counter:5"
    assert labels.label(key, 0xBEEF, "full") == "app.counter:5~beef"


@pytest.mark.django_db
def test_instance_is_named_by_its_row():
    counter = Counter.objects.create(name="x")
    assert name(("stock", counter)) == f"stock:app.counter:{counter.pk}"
    assert name((Seat.objects.create(row="A", number=1),)) == "app.seat:(A:1)"


def test_errors_name_three_keys_and_count_the_rest():
    assert names([named(("a",)), named(("b", 1))]) == "a, b:1"
    assert names([named((n,)) for n in range(5)]) == "0, 1, 2 and 2 more"


def test_label_is_the_readable_key():
    assert label(("inventory", "sku-1"), 0x1234, "full") == "inventory:sku-1"
    assert label(("account", -7), 0x1234, "full") == "account:-7"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (("a:b",), "a:b~beef"),
        (("a b",), "a?b~beef"),
        (("a[b]",), "a?b?~beef"),
        (("a~b",), "a~b~beef"),
        (("ü",), "?~beef"),
        (("a", True), "a:True~beef"),
        (("a" * 41,), "a" * 35 + "~beef"),
        (tuple("abcdefghi"), "a:b:c:d:e:f:g:h:i~beef"),
    ],
)
def test_other_labels_end_in_the_numbers_last_digits(key, shown):
    assert label(key, -0x7FFF_FFFF_FFFF_4111, "full") == shown


def test_dblock_labels_first_shows_the_first_part_only():
    """Keys may hold personal data; what kind of lock it is may still be seen."""
    assert label(("mail", "ann@example.org"), 0xBEEF, "first") == "mail~beef"
    assert label(("mail",), 0xBEEF, "first") == "mail"


def test_dblock_labels_off_shows_nothing():
    assert label(("a",), 1, "off") == ""


@given(keys)
@example(("\x1f",))
@example((10**300,))
def test_label_round_trips_to_its_lock(key):
    shown = label(key, number(key), "full")
    assert shown.isascii()
    assert " " not in shown
    assert read(compose("shop", [shown]), [number(key)], "") == {number(key): shown}


@given(keys, st.text(max_size=5))
def test_label_is_read_in_the_current_namespace(key, namespace):
    shown = labels.label(named(key), number(key, namespace), "full", namespace)
    assert number(key, namespace) in read(compose("", [shown]), [number(key, namespace)], namespace)


def test_cut_label_of_another_namespace_names_nothing():
    key = ("inventory", "ü")
    there = number(key, "acme")
    shown = labels.label(named(key), there, "full", "acme")
    assert read(compose("", [shown]), [there], "acme") == {there: shown}
    assert read(compose("", [shown]), [there], "globex") == {}
    assert read(compose("", [shown]), [there], "") == {}


def test_another_namespaces_label_names_nothing():
    shown = label(("a",), number(("a",), "theirs"), "full")
    assert read(compose("", [shown]), [number(("a",), "theirs")], "ours") == {}


@given(application_names, st.lists(keys, min_size=1, max_size=8))
def test_composed_name_fits_and_keeps_the_projects(before, several):
    after = before
    for key in several:
        after = compose(after, [label(key, number(key), "full")])
    assert len(after) <= MAX_APPLICATION_NAME
    assert after.isascii()
    if " lock[" not in before:
        assert after.startswith(before[:14])


@given(
    application_names,
    st.lists(st.tuples(keys, st.sampled_from(["full", "first"])), min_size=1, max_size=8),
    st.sampled_from(["", "acme"]),
)
@example("shop", [(("inventory", "sku-1"), "full")] * 2, "")
@example("shop", [(("inventory", f"sku-{one}"), "full") for one in range(6)], "")
@example("s" * 40, [(("a" * 30,), "full"), (("b" * 9,), "full"), (("c",), "full")], "")
def test_short_cuts_give_what_compose_gives(before, several, namespace):
    after = before
    for key, mode in several:
        its, ids = (named(key),), (number(key, namespace),)
        wanted = compose(after, [labels.label(its[0], ids[0], mode, namespace)])
        after = labels.labelled(after, its, ids, mode, namespace)
        assert after == wanted


def test_labels_are_composed():
    assert compose("shop", ["a"]) == "shop lock[a]"
    assert compose("shop lock[a]", ["b", "c"]) == "shop lock[a b c]"
    assert compose("", ["a"]) == " lock[a]"
    assert compose("shop", []) == "shop"


def test_projects_name_is_shortened_only_as_needed():
    own = "inventory-service-of-the-shop"
    assert compose(own, ["a"]) == f"{own} lock[a]"
    assert compose(own, ["a" * 40]) == f"{own[:16]} lock[{'a' * 40}]"
    assert compose(own, ["a" * 40, "b" * 40]) == f"{own[:14]} lock[{'a' * 40} +]"


def test_lock_taken_again_is_named_once():
    assert compose("shop lock[sku-12]", ["sku-1"]) == "shop lock[sku-12 sku-1]"
    assert compose("shop lock[sku-12 sku-1]", ["sku-1"]) == "shop lock[sku-12 sku-1]"


def test_omitted_labels_leave_a_plus():
    full = compose("shop", ["a" * 30, "b" * 30])
    assert full == f"shop lock[{'a' * 30} +]"
    assert compose(full, ["c"]) == f"shop lock[{'a' * 30} c +]"


def test_many_keys_make_no_more_labels_than_fit(monkeypatch):
    """The time does not grow with the labels that are left out, nor with their square."""
    made = []
    plain = labels.label
    monkeypatch.setattr(labels, "label", lambda *one: made.append(one) or plain(*one))
    keys = [named(("account", n)) for n in range(10_000)]
    numbers = [number(("account", n)) for n in range(len(keys))]
    shown = labels.labelled("shop", keys, numbers, "full", "")
    assert shown == "shop lock[account:0 account:1 account:2 account:3 account:4 +]"
    assert len(made) == 6


def test_application_name_that_resembles_a_label_is_none():
    assert compose("shop lock[", ["a"]) == "shop lock[ lock[a]"
    assert read("shop lock[", [number(("a",))], "") == {}


def test_hostile_label_is_read_in_few_ways(monkeypatch):
    """Each part may be text or a number: twelve parts would be 4,096 keys."""
    tried = []
    monkeypatch.setattr(labels, "encode", lambda key: tried.append(key) or encode(key))
    assert read(f" lock[{':'.join('1' * 8)}]", [1], "") == {}
    assert len(tried) == 2**8
    assert read(f" lock[{':'.join('1' * 12)}]", [1], "") == {}
    assert len(tried) == 2**8


@pytest.mark.parametrize("own", ["shop", "", "shop lock[a]", "x" * 60])
@pytest.mark.parametrize("parts", [["sku-1"], ["a" * 40], ["a", "b"], ["sku-1", "sku-1"]])
def test_labelled_equals_composing_the_labels(own, parts):
    keys = [named((part,)) for part in parts]
    numbers = [number((part,)) for part in parts]
    shown = [label((part,), number((part,)), "full") for part in parts]
    assert labels.labelled(own, keys, numbers, "full", "") == compose(own, shown)
