"""Times and foreign texts as readable text."""

import pytest

from django_dblock.core.application_name import without_labels
from django_dblock.monitor.formatting import lasting, one_line, short, visible


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.9, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (11_520, "3 h 12 min"),
        (86_400, "1 d 0 h"),
        (1_000_000, "11 d 13 h"),
    ],
)
def test_duration_has_two_units(seconds, said):
    assert lasting(seconds) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("inventory:sku-1 ü 漢", "inventory:sku-1 ü 漢"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
        ("zero\u200bwidth\u2066", "zero\\u200bwidth\\u2066"),
        ("no\xa0break", "no\\xa0break"),
    ],
)
def test_invisible_characters_are_escaped(text, shown):
    assert visible(text) == shown


def test_long_names_keep_their_ends():
    assert short("inventory", 9) == "inventory"
    cut = short("inventory:sku-123456789", 12)
    assert len(cut) == 12
    assert cut.startswith("inven")
    assert cut.endswith("789")


def test_error_text_fits_into_a_sentence():
    assert one_line('relation "x"\n  does not exist.\n') == 'relation "x" does not exist'


@pytest.mark.parametrize(
    ("name", "program"),
    [("shop lock[a b]", "shop"), ("shop", "shop"), ("shop lock[a", "shop lock[a"), ("", "")],
)
def test_labels_are_cut_off_the_program_name(name, program):
    assert without_labels(name) == program
