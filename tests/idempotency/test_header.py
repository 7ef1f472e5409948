"""The header: one key, quoted or bare, or a ValueError; never anything else."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_dblock.idempotency.identity import MAX_LENGTH, parse

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)


def quoted(key):
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"abc"', "abc"),
        ("abc", "abc"),
        (' \t"abc"\t ', "abc"),
        ('"a b, c"', "a b, c"),
        (r'"a\"b\\c"', 'a"b\\c'),
        ('"abc";v=1', "abc"),
        ('"abc" ; v ; w="x, \\" y"; z=t', "abc"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("a" * MAX_LENGTH, "a" * MAX_LENGTH),
        (quoted('"' * MAX_LENGTH), '"' * MAX_LENGTH),
    ],
)
def test_valid_header_gives_the_key(value, key):
    assert parse(value, strict=False) == key


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ('""', "empty"),
        ("a" * 256, "longer than 255"),
        (quoted("a" * 256), "longer than 255"),
        ("a" * 2041, "longer than 255"),
        ("a\x07b", "not one key"),
        ('"a\x07b"', "not one key"),
        ('"a\nb"', "not one key"),
        ("\x7f", "not one key"),
        ("a, b", "not one key"),
        ("a,b", "not one key"),
        ('"a", "b"', "not one key"),
        ('"a","b"', "not one key"),
        ('"a" "b"', "not one key"),
        ('"a";v=1, "b"', "not one key"),
        ("a b", "not one key"),
        ("a;v=1", "not one key"),
        ('"abc', "no closing quote"),
        ('abc"', "not one key"),
        (r'"a\b"', "not one key"),
        ('"abc";', "not one key"),
        ('"abc";V', "not one key"),
        ("é", "not one key"),
        ('"é"', "not one key"),
        ("a\\b", "not one key"),
    ],
)
def test_invalid_header_is_a_value_error(value, why):
    with pytest.raises(ValueError, match=why) as raised:
        parse(value, strict=False)
    assert len(value) < 2 or value not in str(raised.value)


def test_strict_accepts_only_the_quoted_form():
    assert parse('"abc"', strict=True) == "abc"
    with pytest.raises(ValueError, match="not one quoted string"):
        parse("abc", strict=True)


@given(st.text(), st.booleans())
@example('"' + "\\" * 1000, False)
@example('""' + ";a" * 900 + ",", False)
def test_any_header_is_a_key_or_a_value_error(value, strict):
    try:
        key = parse(value, strict=strict)
    except ValueError:
        return
    assert 1 <= len(key) <= MAX_LENGTH
    assert key.isascii()
    assert key.isprintable()


@given(PRINTABLE, st.booleans())
def test_quoted_form_of_a_key_round_trips(key, strict):
    assert parse(quoted(key), strict=strict) == key
