"""Keys: injective, the same in every process and release, refused before any SQL."""

import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum, IntEnum, StrEnum
from uuid import UUID

import pytest
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import example, given
from hypothesis import strategies as st

from django_dblock.keys import MAX_DEPTH, decode, encode, from_pg_locks, key_id, to_pg_locks
from tests.app.models import Child, Counter, CounterProxy, Document, Seat
from tests.helpers.some_keys import ONE, keys


class Status(StrEnum):
    PAID = "paid"


class Level(IntEnum):
    HIGH = 7


class Colour(Enum):
    RED = ("red", 1)


# Fixed for ever: two releases run side by side during a deploy. A change here is a broken release.
GOLDEN = [
    (("inventory", "sku-1"), "", -2596718357159076194),
    (("inventory", "sku-1"), "shop", 651186958655660077),
    (("a", "bc"), "", -2331680085548570165),
    (("ab", "c"), "", -5615065438250605438),
    (("abc",), "", -3554537841725156184),
    ((1,), "", -6745314627850967364),
    (("1",), "", 6669039287403938978),
    ((True,), "", -3711162545251516728),
    ((b"1",), "", -8906938460190341732),
    ((-129,), "", 7616022711890416796),
    ((2**70,), "", -6612337556492538822),
    ((ONE,), "", -5288656620371011578),
    ((Decimal("19.90"),), "", -1336961160038521422),
    ((date(2026, 1, 31),), "", 5141415859575019476),
    ((datetime(2026, 1, 31, 12),), "", -6228857321336775876),
    ((datetime(2026, 1, 31, 12, tzinfo=UTC),), "", 4103536327292036560),
    (("a", ("b", (1, ()))), "", -2226649934780328816),
    (("é",), "", -1972634122742100464),
    (("\x00%'\"🔒\udc80",), "", -8683660903347603743),
]


def same(one, two):
    """Whether two parts should be one key: the same type, and equal as the database sees it."""
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, datetime) and isinstance(two, datetime):
        return (one.tzinfo is None) == (two.tzinfo is None) and (
            one.replace(fold=0) == two.replace(fold=0)
            if one.tzinfo is None
            else one.astimezone(UTC) == two.astimezone(UTC)
        )
    return type(one) is type(two) and one == two


@pytest.mark.parametrize(("key", "namespace", "number"), GOLDEN)
def test_encoding_matches_golden_vectors(key, namespace, number):
    assert key_id(encode(key), namespace) == number


def test_encoding_matches_the_documentation():
    """The encoding as the docstring writes it down, by hand."""
    eight = (8).to_bytes(8, "big")
    assert encode(("sku-0001", 1)) == (
        b"(" + (9 + 8 + 9 + 1).to_bytes(8, "big")
        + b"s" + eight + b"sku-0001"
        + b"i" + (1).to_bytes(8, "big") + b"\x01"
    )  # fmt: skip


def test_number_can_be_recomputed_by_b2sum():
    """Any language with BLAKE2b can lock the same key."""
    encoded = b"s" + bytes(8) + encode(("inventory", "sku-1"))
    done = subprocess.run(["b2sum", "-l", "64"], input=encoded, capture_output=True, check=True)
    digest = bytes.fromhex(done.stdout.split()[0].decode())
    assert int.from_bytes(digest, "big", signed=True) == key_id(encode(("inventory", "sku-1")))


@given(keys, keys)
@example(("a", "bc"), ("ab", "c"))
@example(("ab", "c"), ("abc",))
@example((1,), ("1",))
@example((1,), (True,))
@example(("",), ((),))
@example((("a",), "b"), ("a", ("b",)))
@example((Decimal("1.0"),), (Decimal("1.00"),))
@example((Decimal("-0"),), (Decimal("0E+3"),))
@example(("é",), ("é",))
def test_encoding_is_injective(one, two):
    assert (encode(one) == encode(two)) == same(one, two)


@given(keys)
def test_decoding_gives_plain_parts_back(key):
    """The plain types come back as they were; the others as the text that equal ones share."""
    parts = decode(encode(key))
    assert len(parts) == len(key)
    for part, given_part in zip(parts, key, strict=True):
        if type(given_part) in (str, int, bool, bytes, UUID):
            assert type(part) is type(given_part)
            assert part == given_part


def test_enums_decimals_dates_and_instances_are_decoded():
    day = datetime(2026, 1, 2, 13, tzinfo=timezone(timedelta(hours=1)))
    key = (Status.PAID, (Decimal("1.50"), ()), day.date(), day, Counter(pk=5))
    key[-1]._state.adding = False
    assert decode(encode(key)) == (
        "paid", ("15E-1", ()), "2026-01-02", "2026-01-02T12:00:00.000000", ("app.counter", 5),
    )  # fmt: skip


@given(keys)
def test_number_is_signed_64_bit(key):
    assert -(2**63) <= key_id(encode(key)) < 2**63


@given(st.integers(-(2**63), 2**63 - 1))
def test_pg_locks_halves_round_trip(number):
    classid, objid = to_pg_locks(number)
    assert 0 <= classid < 2**32
    assert 0 <= objid < 2**32
    assert from_pg_locks(classid, objid) == number


def test_number_is_equal_in_all_processes():
    program = (
        "import json, sys; from django_dblock.keys import encode, key_id;"
        "print(json.dumps([key_id(encode(tuple(k)), n) for k, n in json.load(sys.stdin)]))"
    )
    plain = [
        [key, namespace]
        for key, namespace, _ in GOLDEN
        if all(type(part) in (str, int, bool) for part in key)
    ]
    expected = [key_id(encode(tuple(key)), namespace) for key, namespace in plain]
    for seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(plain), capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert json.loads(done.stdout) == expected


def test_keys_module_needs_no_django():
    """Pure: other programs can import it to lock the same keys."""
    program = "import sys, django_dblock.keys; sys.exit('django' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_namespace_changes_the_number():
    assert len({key_id(encode(("a",)), namespace) for namespace in ("", "a", "b", "\udc80")}) == 4


def test_enum_member_is_its_value():
    """Django hands back the plain value after a reload: both must lock the same."""
    assert encode((Status.PAID,)) == encode(("paid",))
    assert encode((Level.HIGH,)) == encode((7,))
    assert encode((Colour.RED,)) == encode((("red", 1),))


def test_subclasses_and_lazy_objects_are_their_values():
    assert isinstance(mark_safe("a"), SafeString)
    assert encode((mark_safe("a"),)) == encode(("a",))
    assert encode((SimpleLazyObject(lambda: "a"),)) == encode(("a",))


def test_equal_decimals_are_one_key():
    long = Decimal("1." + "0" * 40 + "1")
    with localcontext() as context:
        context.prec = 3
        assert encode((long,)) != encode((Decimal(1),))
        assert encode((Decimal(100),)) == encode((Decimal("1E+2"),))


def test_equal_instants_are_one_key():
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert encode((noon,)) == encode((noon.astimezone(timezone(timedelta(hours=5, minutes=30))),))
    assert encode((noon,)) != encode((noon.replace(tzinfo=None),))


@pytest.mark.django_db
class TestInstances:
    def test_instance_is_keyed_by_its_row(self):
        one, two = Counter.objects.create(name="a"), Counter.objects.create(name="b")
        assert encode((one,)) == encode((Counter.objects.get(pk=one.pk),))
        assert encode((one,)) != encode((two,))
        assert encode((one,)) != encode((("app.counter", one.pk),))
        assert encode((SimpleLazyObject(lambda: one),)) == encode((one,))

    def test_proxy_and_deferred_instances_are_the_same_key(self):
        one = Counter.objects.create(name="a")
        assert encode((CounterProxy.objects.get(pk=one.pk),)) == encode((one,))
        assert encode((Counter.objects.only("pk").get(pk=one.pk),)) == encode((one,))

    def test_text_pk_equals_the_reloaded_pk(self):
        Counter.objects.create(pk=5, name="a")
        one = Counter(pk="5", name="b")
        one.save()
        assert one.pk == "5"
        assert encode((one,)) == encode((Counter.objects.get(pk=5),))

    def test_child_and_parent_are_different_keys(self):
        child = Child.objects.create(name="a")
        assert encode((child,)) != encode((child.counter_ptr,))

    def test_composite_pk_is_part_of_the_key(self):
        seat = Seat.objects.create(row="A", number=1)
        assert encode((seat,)) == encode((Seat.objects.get(row="A", number=1),))
        assert encode((seat,)) != encode((Seat.objects.create(row="A", number=2),))

    def test_unsaved_instance_with_a_pk_is_refused(self):
        with pytest.raises(
            ValueError, match=r"Part 2 of 2 in the key, an object of type Document, is"
        ):
            encode(("doc", Document()))

    def test_deleted_instance_is_refused(self):
        one = Counter.objects.create(name="a")
        one.delete()
        with pytest.raises(ValueError, match="not saved"):
            encode((one,))

    def test_naming_a_wrong_part_runs_no_query(self, django_assert_num_queries):
        """An instance's repr may follow a relation: it is never asked for."""

        class Loud(Counter):
            class Meta:
                app_label = "app"
                proxy = True

            def __repr__(self):
                raise AssertionError("asked for its repr")

        with (
            django_assert_num_queries(0),
            pytest.raises(ValueError, match="an object of type Loud"),
        ):
            encode((Loud(),))


def test_empty_key_is_refused():
    with pytest.raises(ValueError, match="at least one part"):
        encode(())


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        (None, "None"),
        (1.5, "1.5"),
        ([1], "an object of type list"),
        ({1}, "an object of type set"),
        (Counter, "an object of type ModelBase"),
        (str, "an object of type type"),
        (timedelta(1), "an object of type timedelta"),
        (gettext_lazy("a"), "an object of type __proxy__"),
        (bytearray(b"a"), "an object of type bytearray"),
    ],
)
def test_other_types_are_refused_with_their_position(part, shown):
    with pytest.raises(TypeError) as caught:
        encode(("a", ("b", part)))
    assert str(caught.value).startswith(f"Part 2.2 of 2 in the key, {shown}, cannot be part")


def test_error_hints_name_alternatives():
    with pytest.raises(TypeError, match="Decimal or str"):
        encode((1.0,))
    with pytest.raises(TypeError, match="decorator form"):
        encode((lambda: 1,))


@pytest.mark.parametrize(
    "part",
    [
        Decimal("NaN"),
        Decimal("Infinity"),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    ],
)
def test_unlockable_values_are_refused(part):
    with pytest.raises(ValueError, match=r"Part 1 of 1 in the key, .* cannot be locked"):
        encode((part,))


def test_deeply_nested_tuples_are_refused():
    def nested(depth):
        return "a" if depth == 0 else (nested(depth - 1),)

    encode(nested(MAX_DEPTH))
    with pytest.raises(ValueError, match="32 deep"):
        encode(nested(MAX_DEPTH + 1))


def test_long_key_is_accepted():
    assert encode(("a" * 1_000_000,)) != encode(("a" * 1_000_001,))
    assert key_id(encode((10**10_000,))) != key_id(encode((10**10_000 + 1,)))
