"""Names of keys in the table: stable, readable, and unique."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum

import pytest
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import SafeString
from hypothesis import given
from hypothesis import strategies as st

from django_dblock.core.application_name import named
from django_dblock.fencing.lease_name import ROLES, lease_name, meaning_of, title_of


def name(*key, namespace=""):
    return lease_name(named(key), namespace)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("nightly-sync",), "nightly-sync"),
        (("nightly sync",), "nightly sync"),
        (("inventory", "sku-1"), "inventory:sku-1"),
        (("account", 7, -1), "account:7:-1"),
        (("größe",), "größe"),
        ((SafeString("sku-1"),), "sku-1"),
        ((SimpleLazyObject(lambda: "sku-1"),), "sku-1"),
        ((True,), "True~8dd2b3d1c880f01e77a848ec14610531"),
        (("a:b",), "a:b~"),
        (("7",), "7~"),
        (("a", ""), "a:~"),
        (("",), "~"),
        (("a~b",), "a~b~"),
        (("a\nb",), "a\\nb~"),
        ((Decimal("1.50"),), "15E-1~"),
        ((2**200,), f"{2**200:#x}~"),
        (("x" * 201,), f"{'x' * 199}…~"),
    ],
)
def test_text_of_a_key_is_fixed(key, text):
    if text.endswith("~"):
        found, _, digest = name(*key).rpartition("~")
        assert f"{found}~" == text
        assert len(digest) == 32
    else:
        assert name(*key) == text


def test_digest_of_an_escaped_key_is_fixed():
    assert name("a:b") == "a:b~6b6bd37b964bf03287d150201d3e3859"


def test_namespace_precedes_the_key():
    assert name("a", 1, namespace="shop") == "shop::a:1"
    assert name("a", namespace="").count(":") == 0
    assert name("a", namespace="x:y").startswith("a~")
    assert name("a", namespace="x:y") != name("a", namespace="x:z")
    assert name("b:c", namespace="a") != name("b:c")
    assert len(name("x" * 199, namespace="shop")) < 255


def test_namespace_precedes_a_digest():
    """So that a name tells whose it is."""
    long = name("b:c" * 100, namespace="n" * 100)
    assert long.startswith("n" * 100 + "::")
    assert len(long) <= 233
    assert name("b:c", namespace="shop").startswith("shop::")
    assert name("b:c", namespace="shop") != name("b:c", namespace="shop2")


def test_every_name_fits_the_column():
    assert len(name("x" * 1000)) <= 255
    assert len(name("\0" * 1000)) <= 255
    assert len(name("\U0001f512" * 1000, 5)) <= 255


parts = st.one_of(
    st.text(alphabet="a1:~- ", max_size=4),
    st.integers(-11, 11),
    st.booleans(),
    st.binary(max_size=2),
    st.tuples(st.sampled_from(["a", 1])),
)
keys = st.lists(parts, min_size=1, max_size=3).map(tuple)


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((Colour.RED,), ("red",)),
        (("car", (Colour.RED,)), ("car", ("red",))),
        ((Decimal("1.5"),), (Decimal("1.500"),)),
        (
            (datetime(2026, 1, 1, 12, tzinfo=UTC),),
            (datetime(2026, 1, 1, 13, tzinfo=timezone(timedelta(hours=1))),),
        ),
    ],
)
def test_equal_keys_share_a_name(one, other):
    """However they are written: two names would be two holders."""
    assert named(one).data == named(other).data
    assert name(*one) == name(*other)


@given(keys, keys, st.sampled_from(["", "a", "a:", "1"]), st.sampled_from(["", "a", "a:", "1"]))
def test_no_two_keys_share_a_name(one, other, here, there):
    same = (named(one).data, here) == (named(other).data, there)
    assert (name(*one, namespace=here) == name(*other, namespace=there)) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), ("1",)),
        (("a:b",), ("a", "b")),
        ((True,), (1,)),
        ((b"a",), ("a",)),
        (("a",), (("a",),)),
    ],
)
def test_similar_keys_have_different_names(one, other):
    assert name(*one) != name(*other)


@pytest.mark.parametrize("word", ROLES)
def test_lock_that_is_named_like_a_kind_is_a_lock(word):
    assert meaning_of(name(word), 0) == (word, "fenced", "lock")
    assert title_of(name(word), 0) == word
    assert meaning_of(f"{name(word)}~{word}", 1).key == word
