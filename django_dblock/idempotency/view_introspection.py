"""Checks of the view that ``@idempotent`` decorates, and of authorisation below the decorator."""

import inspect
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.db.transaction import Atomic
from django.utils.decorators import method_decorator

from django_dblock.core.decorators import refuse_what_runs_later
from django_dblock.idempotency import rest_framework
from django_dblock.idempotency.request import Adapter, adapter_of


def adapter_in(args: tuple[Any, ...], view: Any, *, asynchronous: bool) -> Adapter:
    """Return the adapter of the request: a function's first argument, a method's second.

    Raises:
        TypeError: the view was called without a request.
        ImproperlyConfigured: the decorator is around the code that authorises clients, which only
            the call shows.
    """
    for place, candidate in enumerate(args[:2]):
        adapter = adapter_of(candidate, asynchronous=asynchronous)
        if adapter is not None:
            owner = args[0] if place else _owner(view)
            if owner is not None:
                _refuse_owner(owner, view)
            return adapter
    raise TypeError(f"{name_of(view)} was called without a request as its first argument.")


def _refuse_owner(owner: Any, view: Any) -> None:
    """Refuse a method that authorises clients, by the object on which it was called."""
    if getattr(view, "__name__", "") == "dispatch":
        _refuse_outer(type(owner), _inside(type(owner), view), view)
    _refuse_operation(owner, view)


def checked(view: Any, mode: str, options: dict[str, Any]) -> str:
    """Return the name of a view that can be decorated; refuse other objects.

    Args:
        view: the decorated object.
        mode: ``mode=``.
        options: the options that are functions, by their name.

    Raises:
        TypeError: no request of the view could be protected with these options.
        ImproperlyConfigured: the decorator is around the code that authorises clients.
    """
    if not callable(view) and not hasattr(view, "__get__"):
        raise TypeError(
            f"@idempotent was given {view!r}, which is not a view. It decorates a view, and takes "
            f"its options by name: @idempotent(scope=…)."
        )
    refuse_what_runs_later(view, "idempotent")
    name = name_of(view)
    if mode == "atomic":
        _refuse_in_atomic_mode(view, name)
    if not is_async(view) and not is_trial(view):
        for option, call in options.items():
            if iscoroutinefunction(call):
                raise TypeError(f"{option}= is async, and {name} is not: use a plain function.")
    outer = getattr(view, "cls", None) or getattr(view, "view_class", None)
    if outer is not None:
        _refuse_outer(outer, outer.__mro__, view)
    owner = _owner(view)
    if owner is not None:
        _refuse_operation(owner, view)
    return name


def _refuse_in_atomic_mode(view: Any, name: str) -> None:
    """Refuse a view that can't run inside a transaction."""
    if is_async(view):
        raise TypeError(
            f"{name} is async, and Django's transactions can't span an await: use "
            f"@idempotent(mode='lease')."
        )
    if any(map(_is_durable, _layers(view))):
        raise TypeError(f"{name} uses atomic(durable=True). {_DURABLE}")


_DURABLE = (
    "In atomic mode the view runs inside a transaction of @idempotent, which commits its effects "
    "together with its response, so a block inside can't be durable. Take durable=True off, or use "
    "@idempotent(mode='lease')."
)


def explain_durable(error: Exception) -> None:
    """Add a note to Django's error about a durable block that could not be seen at decoration."""
    if isinstance(error, RuntimeError) and "durable atomic block" in str(error):
        error.add_note(_DURABLE)


def _layers(view: Any) -> Iterator[Any]:
    """Return the view and each function that it wraps."""
    while view is not None:
        yield view
        view = getattr(view, "__wrapped__", None)


def _is_durable(function: Any) -> bool:
    """Return whether a function is ``@atomic(durable=True)``, or has such a block in its code."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return False
    if "self" in code.co_freevars:  # contextlib's wrapper, of which Atomic is a ContextDecorator
        cell = function.__closure__[code.co_freevars.index("self")]
        manager: Any = cell.cell_contents
        if isinstance(manager, Atomic):
            return bool(vars(manager)["durable"])  # not in the stubs
    # The names of a call's keyword arguments are a constant of their own.
    keywords = any(isinstance(each, tuple) and "durable" in each for each in code.co_consts)
    return keywords and "atomic" in code.co_names and True in code.co_consts


def _refuse_operation(owner: Any, view: Any) -> None:
    """Refuse to decorate an operation of django-ninja that authenticates.

    ``decorate_view()`` puts decorators there. The operations of an API get its authentication when
    the URLs are made, so it may be seen only at a request.
    """
    module = sys.modules.get("ninja.operation")
    if module is None or not isinstance(owner, module.Operation) or not owner.auth_callbacks:
        return
    raise ImproperlyConfigured(
        f"@idempotent on {name_of(view)} is around the authentication of django-ninja, so a "
        f"stored response would be sent to any client. Don't use decorate_view() for it: put "
        f"@idempotent directly on the function, below @api.post(), and let the function return a "
        f"response, api.create_response(request, …)."
    )


def _refuse_outer(cls: type, inside: tuple[type, ...], view: Any) -> None:
    """Refuse to decorate a view that authorises clients, because a replay would skip that."""
    if rest_framework.is_view(cls):
        how = "below @api_view, or on the view's method: post(), create(), an action"
    elif any(map(_decides_access, inside)):
        how = "on the view's method, post() for example"
    else:
        return
    raise ImproperlyConfigured(
        f"@idempotent on {name_of(view)} is around the authorisation of {cls.__qualname__}, "
        f"so a replay would skip the authorisation. Put @idempotent {how}."
    )


def _inside(cls: type, view: Any) -> tuple[type, ...]:
    """Return the classes from the one whose ``dispatch`` is decorated onwards.

    Classes before it in the MRO run before the decorator. If none is found, return all classes.
    """
    method = inspect.unwrap(view)
    for number, each in enumerate(cls.__mro__):
        if inspect.unwrap(vars(each).get("dispatch", cls)) is method:
            return cls.__mro__[number:]
    return cls.__mro__


def _decides_access(cls: type) -> bool:
    """Return whether the ``dispatch`` of a class authorises clients."""
    # Importing the mixin would need the auth app to be installed.
    mixins = sys.modules.get("django.contrib.auth.mixins")
    return mixins is not None and issubclass(cls, mixins.AccessMixin)


def _owner(view: Any) -> Any:
    """Return the instance of a bound method, as ``method_decorator`` hands it over."""
    owner = None
    while owner is None and view is not None:  # other decorators may be between
        owner = getattr(getattr(view, "func", view), "__self__", None)
        view = getattr(view, "__wrapped__", None)
    return owner


def name_of(view: Any) -> str:
    """Return the name of a view in messages."""
    module = getattr(view, "__module__", "")
    return f"{module}.{getattr(view, '__qualname__', repr(view))}"


def is_trial(view: Any) -> bool:
    """Return whether a view is the dummy on which ``method_decorator`` tries a decorator."""
    return getattr(view, "__module__", "") == method_decorator.__module__


def is_async(view: Any) -> bool:
    """Return whether a view is awaited; ``dispatch`` of an async class is a plain function."""
    return iscoroutinefunction(view) or bool(getattr(_owner(view), "view_is_async", False))
