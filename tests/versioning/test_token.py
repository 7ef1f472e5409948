"""A signed token is accepted only unchanged, and only for its row."""

import datetime as dt
from decimal import Decimal
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.core.signing import Signer
from django.db.models import F
from hypothesis import example, given
from hypothesis import strategies as st

from django_dblock import etag, namespace
from django_dblock.versioning.web import signed_version as token
from django_dblock.versioning.web.etag import named, newest
from tests.app.models import Article, Product, Shelf

LABEL = "app.Product"
GOOD = token.dump(LABEL, 5, 7, {"name": "lamp", "stock": 3, "price": None})


def refused(text, label=LABEL, pk=5):
    with pytest.raises(ValidationError) as caught:
        token.load(label, pk, text)
    return caught.value.code


def test_signed_token_is_read():
    seen = token.load(LABEL, 5, GOOD)
    assert seen.version == 7
    assert seen.original == {"name": "lamp", "stock": 3, "price": None}


def test_token_is_compact():
    assert len(token.dump(LABEL, 5, 7, {})) < 60
    assert len(token.dump(LABEL, 5, 7, {"note": "again and " * 300})) < 200


@pytest.mark.parametrize(
    ("label", "pk"), [("app.Gadget", 5), (LABEL, 6), (LABEL, "5"), (LABEL, None)]
)
def test_token_is_valid_for_one_row(label, pk):
    assert refused(GOOD, label, pk) == "version_unreadable"


@pytest.mark.parametrize("pk", [UUID(int=1), ("a", 5), "a:b"])
def test_token_supports_any_primary_key(pk):
    assert token.load(LABEL, pk, token.dump(LABEL, pk, 1, {})).version == 1


@pytest.mark.parametrize("nothing", [None, "", [], 0])
def test_missing_token_is_refused(nothing):
    assert refused(nothing) == "version_missing"


def test_token_of_another_purpose_is_refused():
    assert refused(Signer().sign_object([7, {}])) == "version_unreadable"
    assert refused(token.dump_many(LABEL, {5: 7})) == "version_unreadable"


@given(st.text() | st.binary() | st.integers(min_value=1) | st.lists(st.text(), min_size=1))
@example("\ud800")
@example("\x00")
@example(":")
@example(".:")
@example(GOOD + "\n")
@example(GOOD[:-1])
@example("." + GOOD)
def test_trap_any_text_is_refused_without_an_error(text):
    if text:
        assert refused(text) == "version_unreadable"


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_changed_character_is_refused(at, character):
    if (changed := GOOD[:at] + character + GOOD[at + 1 :]) != GOOD:
        assert refused(changed) == "version_unreadable"


def test_many_versions_travel_together():
    text = token.dump_many(LABEL, {5: 7, 6: 1})
    assert token.load_many(LABEL, text) == {"5": 7, "6": 1}
    for wrong, code in ((None, "version_missing"), (GOOD, "version_unreadable")):
        with pytest.raises(ValidationError) as caught:
            token.load_many(LABEL, wrong)
        assert caught.value.code == code


def read_back(model, **values):
    fields = {name: model._meta.get_field(name) for name in values}
    text = token.dump("a.B", 1, 1, token.encoded((fields[name], values[name]) for name in values))
    original = token.load("a.B", 1, text).original
    return {name: fields[name].to_python(value) for name, value in original.items()}


def test_values_round_trip():
    values = {
        "built": dt.date(2024, 2, 29),
        "checked": dt.datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=dt.UTC),
        "width": Decimal("1.50"),
        "open": False,
        "note": "ä\n<b>",
        "extra": {"a": [1, None]},
        "main": 4,
    }
    assert read_back(Shelf, **values) == values
    assert read_back(Shelf, built=None) == {"built": None}


def test_long_or_complex_values_are_left_out():
    class Strange:
        pass

    assert read_back(Shelf, note="x" * token.LONGEST, name="a") == {"name": "a"}
    assert read_back(Product, stock=F("stock") + 1) == {}
    assert read_back(Article, tags=[Strange()]) == {}


def test_tokens_differ_between_namespaces():
    with namespace("acme"):
        there = token.dump(LABEL, 5, 7, {})
        assert token.load(LABEL, 5, there).version == 7
    assert refused(there) == "version_unreadable"
    with namespace("globex"):
        assert refused(there) == "version_unreadable"
        assert refused(GOOD) == "version_unreadable"


def test_etags_differ_between_namespaces():
    product = Product(pk=5, version=7)
    product._state.adding = False
    with namespace("acme"):
        acme = etag(product)
    with namespace("globex"):
        assert etag(product) != acme
        assert newest(product, named(acme)) is None
    assert etag(product) != acme
    with namespace("acme"):
        assert newest(product, named(acme)) == 7
