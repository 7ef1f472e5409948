"""Where ``@idempotent`` stands: on what, and not around what decides who may come in."""

import inspect
import sys
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.decorators import method_decorator

from django_dblock.idempotency import rest_framework


def request_of(args: tuple[Any, ...], view: Any) -> Any:
    """Return the request: the first argument of a function, the second of a method."""
    for place, candidate in enumerate(args[:2]):
        if isinstance(candidate, HttpRequest) or rest_framework.is_request(candidate):
            owner = args[0] if place else _owner(view)
            if owner is not None and getattr(view, "__name__", "") == "dispatch":
                _refuse_outer(type(owner), _inside(type(owner), view), view)
            return candidate
    raise TypeError(f"{name_of(view)} was called without a request as its first argument.")


def checked(view: Any, mode: str) -> str:
    """Refuse what can't be decorated; return its name."""
    name = name_of(view)
    if isinstance(view, type):
        raise TypeError(
            f"{name} is a class: decorate the method that needs it, post() for example, or use "
            f"method_decorator(idempotent, name='post')."
        )
    if mode == "atomic" and is_async(view):
        raise TypeError(
            f"{name} is async, and Django's transactions can't span an await: use "
            f"@idempotent(mode='lease')."
        )
    outer = getattr(view, "cls", None) or getattr(view, "view_class", None)
    if outer is not None:
        _refuse_outer(outer, outer.__mro__, view)
    return name


def _refuse_outer(cls: type, inside: tuple[type, ...], view: Any) -> None:
    """Refuse to stand around what decides who may come in: a replay would go past it."""
    if rest_framework.is_view(cls):
        how = "below @api_view, or on the view's method: post(), create(), an action"
    elif any(map(_decides_access, inside)):
        how = "on the view's method, post() for example"
    else:
        return
    raise ImproperlyConfigured(
        f"@idempotent on {name_of(view)} stands around the authorisation of {cls.__qualname__}, "
        f"so a replay would be given without it. Put it {how}."
    )


def _inside(cls: type, view: Any) -> tuple[type, ...]:
    """Return the classes from the one whose ``dispatch`` is decorated: those before it ask first.

    Where none is found, all.
    """
    method = inspect.unwrap(view)
    for number, each in enumerate(cls.__mro__):
        if inspect.unwrap(vars(each).get("dispatch", cls)) is method:
            return cls.__mro__[number:]
    return cls.__mro__


def _decides_access(cls: type) -> bool:
    """Whether its ``dispatch`` refuses; importing the mixin needs an installed auth app."""
    mixins = sys.modules.get("django.contrib.auth.mixins")
    return mixins is not None and issubclass(cls, mixins.AccessMixin)


def _owner(view: Any) -> Any:
    """Return the instance of a bound method, as ``method_decorator`` hands it over."""
    owner = None
    while owner is None and view is not None:  # other decorators may stand between
        owner = getattr(getattr(view, "func", view), "__self__", None)
        view = getattr(view, "__wrapped__", None)
    return owner


def name_of(view: Any) -> str:
    """Return what a view is called in messages."""
    module = getattr(view, "__module__", "")
    return f"{module}.{getattr(view, '__qualname__', repr(view))}"


def is_trial(view: Any) -> bool:
    """Whether it is the dummy on which ``method_decorator`` looks what a decorator adds."""
    return getattr(view, "__module__", "") == method_decorator.__module__


def is_async(view: Any) -> bool:
    """Whether to await the view; ``dispatch`` of an async class view does not look like it."""
    return iscoroutinefunction(view) or bool(getattr(_owner(view), "view_is_async", False))
