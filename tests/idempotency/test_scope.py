"""Scopes: each client has its own."""

from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser, Group, User
from django.core.exceptions import ImproperlyConfigured
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st

from django_dblock.idempotency.identity import scope_from_user, scope_from_value
from tests.app.models import Counter


def user(pk):
    return SimpleNamespace(pk=pk, is_authenticated=True)


def test_scope_of_a_user():
    assert scope_from_user(user(7), "shop.pay") == "user:7"


def logged_in(user):
    user.is_authenticated = True
    return user


@isolate_apps("tests.app")
def test_user_models_with_the_same_pk_have_different_scopes(settings):
    class Staff(User):
        class Meta:
            app_label = "app"
            proxy = True

    class Customer(User):
        class Meta:
            app_label = "app"

    class Merchant(Group):
        class Meta:
            app_label = "app"
            proxy = True

    lazy = SimpleLazyObject(lambda: User(pk=7))
    accounts = [User(pk=7), lazy, Staff(pk=7), Customer(pk=7), user(7)]
    assert {scope_from_user(each, "shop.pay") for each in accounts} == {"user:7"}
    others = [logged_in(model(pk=7)) for model in (Group, Merchant)]
    assert {scope_from_user(each, "shop.pay") for each in others} == {"account:auth.group:7"}
    settings.AUTH_USER_MODEL = "auth.Group"
    assert {scope_from_user(each, "shop.pay") for each in others} == {"user:7"}
    assert scope_from_user(User(pk=7), "shop.pay") == "account:auth.user:7"


@pytest.mark.parametrize(
    "stranger",
    [None, AnonymousUser(), user(None), SimpleNamespace(pk=7), AnonymousUser],
    ids=["none", "anonymous", "without a pk", "not authenticated", "no user"],
)
def test_anonymous_clients_share_no_scope(stranger):
    with pytest.raises(ImproperlyConfigured, match=r"shop\.pay: the client is anonymous.*scope="):
        scope_from_user(stranger, "shop.pay")


class Nobody(Enum):
    NONE = ""
    ZERO = 0


NOBODY = [
    None,
    "",
    " ",
    "\t\n",
    "None",
    "null",
    "undefined",
    "0",
    "AnonymousUser",
    "anonymous",
    "tenant:None",
    "None/api",
    "AnonymousUser|POST",
    0,
    0.0,
    float("nan"),
    False,
    Decimal(0),
    Decimal("NaN"),
    UUID(int=0),
    b"",
    b"\0\0",
    (),
    [],
    {},
    set(),
    frozenset(),
    (None,),
    ("tenant", None),
    ("tenant", ("user", 0)),
    ["tenant", ""],
    {"tenant": 1, "": 2},
    AnonymousUser(),
    ("tenant", AnonymousUser()),
    SimpleLazyObject(AnonymousUser),
    SimpleLazyObject(lambda: ""),
    Nobody.NONE,
    Nobody.ZERO,
]


# Workers of pytest-xdist must agree on the names, so without addresses.
@pytest.mark.parametrize("nobody", NOBODY, ids=lambda value: repr(value).partition(" object at")[0])
def test_empty_scope_is_refused(nobody):
    with pytest.raises(ImproperlyConfigured, match=r"shop\.pay: scope= returned"):
        scope_from_value(nobody, "shop.pay")


@pytest.mark.parametrize(
    "somebody",
    ["7", "none-such", "Nonesuch", "anon:7", "x", 7, -1, True, Decimal("0.5"), UUID(int=7), b"7"],
    ids=repr,
)
def test_scope_that_resembles_none_is_accepted(somebody):
    assert scope_from_value(somebody, "shop.pay")


@pytest.mark.parametrize("returned", [AnonymousUser().get_username, lambda: 7, AnonymousUser])
def test_scope_that_returns_a_callable_is_refused(returned):
    """``scope=lambda request: request.user.get_username``: the call is missing."""
    with pytest.raises(TypeError, match=r"shop\.pay: scope= returned .* is a callable"):
        scope_from_value(returned, "shop.pay")


def test_error_about_a_scope_shows_no_repr_of_an_object():
    with pytest.raises(ImproperlyConfigured, match="an object of type list"):
        scope_from_value(["secret", None], "shop.pay")


def test_value_never_names_a_user():
    assert scope_from_value("user:7", "view") == "scope:user:7"
    assert scope_from_value(7, "view") == "scope:7"


def test_equal_text_of_other_types_is_another_scope():
    saved = Counter(pk=7)
    saved._state.adding = False
    values = ["7", ("7",), (7,), (7, "7"), UUID(int=7), saved, "x" * 300, "x" * 301, "a\x07b"]
    found = [scope_from_value(value, "view") for value in values]
    assert len(set(found)) == len(values)
    assert all(len(scope) <= 255 and scope.isprintable() for scope in found)


@pytest.mark.parametrize(
    "value", ["x" * 300, "a\x07b", ("7",), (7,), UUID(int=7), Decimal(7)], ids=repr
)
def test_client_text_cannot_forge_a_scope(value):
    """Whoever knows how a scope is shortened can't write the result, and get another's answers."""
    found = scope_from_value(value, "view")
    kind, _, rest = found.partition(":")
    assert kind not in ("user", "scope", "once")
    for text in (found, rest):
        assert scope_from_value(text, "view") != found
        assert scope_from_user(user(text), "view") != found


def test_long_user_name_is_no_value_scope():
    assert scope_from_user(user("x" * 300), "view") != scope_from_value("x" * 300, "view")
    assert scope_from_user(user("x" * 300), "view").partition(":")[0] not in ("user", "scope")


def test_float_as_a_scope_is_refused():
    with pytest.raises(TypeError):
        scope_from_value(1.5, "view")


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_texts_are_different_scopes(one, two):
    one, two = f"client{one}", f"client{two}"
    scopes = scope_from_value(one, "view"), scope_from_value(two, "view")
    assert (scopes[0] == scopes[1]) == (one == two)
    assert all(len(scope) <= 255 and "\x00" not in scope for scope in scopes)


def test_long_scope_value_fits_the_column():
    assert len(scope_from_value(tuple("x" * 100 for _ in range(5)), "view")) <= 255
