"""System checks of the views in the URLconf: W030 to W033.

A decorator can't see the functions around it, so these checks read each chain of functions from
the URLconf into a view. They find guards inside a transaction, responses that can't be stored,
clients without a name, and authorisation that a replay would skip.
"""

from collections.abc import Iterable, Iterator
from inspect import getattr_static, unwrap
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections
from django.urls import get_resolver
from django.utils.module_loading import import_string
from django.views import View

from django_dblock.checks.decorator_chain import Layer, chains, free, home, name_of, names_in
from django_dblock.core.connection import alias_of
from django_dblock.core.decorators import Guard, guards_of
from django_dblock.idempotency.decorator import MARK, decorated, idempotent
from django_dblock.idempotency.request import ViewConfig
from django_dblock.models import FencedLock, IdempotencyKey

_STREAMS = frozenset({"StreamingHttpResponse", "FileResponse"})
_USERS = "django.contrib.auth.middleware.AuthenticationMiddleware"
_AUTH_DECORATORS = "django.contrib.auth.decorators"
_AUTH_TESTS = (_AUTH_DECORATORS, "django.contrib.admin.views.decorators")
_AUTH_DISPATCH = ("django.contrib.auth.mixins", "rest_framework.views", "adrf.views")


def check_guards(**_: Any) -> list[checks.CheckMessage]:
    """Find guarded views inside ATOMIC_REQUESTS (W031) and guarded streams (W032)."""
    found: dict[tuple[Any, ...], checks.CheckMessage] = {}
    for view in _views():
        for function in (view, *(method for _, method in _methods(view) if callable(method))):
            for guard in guards_of(function):
                messages = (*_in_transaction(view, function, guard), *_streaming(function, guard))
                for message in messages:
                    found[message.id, message.msg] = message  # a view may have several URLs
    return list(found.values())


def check_views(**_: Any) -> list[checks.CheckMessage]:
    """Find views with ``@idempotent`` and no ``scope=`` if no client can be logged in (W030)."""
    if _has_users():
        return []
    configs = dict(_decorated_methods())  # imports the views, which fills `decorated`
    configs.update(decorated)
    return [
        checks.Warning(
            f"{name} is decorated with @idempotent without scope=, and nothing here logs clients "
            f"in: each request would end in ImproperlyConfigured.",
            obj=name,
            id="dblock.W030",
            hint=f"Name the client: @idempotent(scope=lambda request: …); or add {_USERS} to "
            f"MIDDLEWARE.",
        )
        for name, config in configs.items()
        if config.scope is None
    ]


def check_order(**_: Any) -> list[checks.CheckMessage]:
    """Find authorisation below ``@idempotent``, which a replay skips (W033)."""
    found: dict[str, dict[str, bool]] = {}
    for view in _views():
        for method, chain in chains(view):
            for number, layer in enumerate(chain):
                if _protects(layer, method):
                    below = _authorisation(layer, chain[number:])
                    found.setdefault(layer.place, {}).update(below)
    return [_unasked(place, below) for place, below in found.items() if below]


def _in_transaction(view: Any, function: Any, guard: Guard) -> Iterator[checks.CheckMessage]:
    if not guard.outside:
        return
    alias = alias_of(guard.using, IdempotencyKey if guard.name == "idempotent" else FencedLock)
    if alias not in connections or not connections[alias].settings_dict["ATOMIC_REQUESTS"]:
        return
    if alias in getattr(view, "_non_atomic_requests", ()):
        return
    kind = "Async, it" if iscoroutinefunction(view) else "It"
    yield checks.Warning(
        f"{name_of(function)} is decorated with @{guard.name} and runs inside the transaction that "
        f"ATOMIC_REQUESTS opens on database {alias!r}. {kind} would raise at each request.",
        obj=name_of(function),
        id="dblock.W031",
        hint=f"Decorate the view, or what as_view() returns in the URLconf, with "
        f"transaction.non_atomic_requests(using={alias!r}).",
    )


def _streaming(function: Any, guard: Guard) -> Iterator[checks.CheckMessage]:
    names = _STREAMS.intersection(names_in(unwrap(function)))
    if not names:
        return
    what = (
        "a response that is a stream can't be stored"
        if guard.name == "idempotent"
        else "the stream is sent after the lock was released"
    )
    yield checks.Warning(
        f"{name_of(function)} is decorated with @{guard.name} and responds with a "
        f"{' or a '.join(sorted(names))}: {what}.",
        obj=name_of(function),
        id="dblock.W032",
        hint="Read the stream's data inside the view, and respond with a plain HttpResponse; or "
        "guard the code that makes the stream, not the view.",
    )


def _protects(layer: Layer, method: str) -> bool:
    """Return whether a layer is ``@idempotent``, and protects this method of a class."""
    if home(layer.function) != idempotent.__module__:
        return False
    config: ViewConfig = getattr(layer.function, MARK)
    return method not in View.http_method_names or method.upper() in config.methods


def _authorisation(around: Layer, chain: list[Layer]) -> Iterator[tuple[str, bool]]:
    """Yield each authorisation in a chain, and whether it is a decorator in the same place."""
    for layer in chain:
        name = _auth_decorator(layer.function)
        if name is not None:
            yield name, layer.place == around.place
        elif _is_auth_dispatch(layer.function):
            yield layer.function.__qualname__.split(".")[-2], False


def _auth_decorator(function: Any) -> str | None:
    """Return the name of Django's authorising decorator that has made a function, or None."""
    if home(function) != _AUTH_DECORATORS:
        return None
    test = free(function, "test_func")
    known = getattr(test, "__module__", "") in _AUTH_TESTS
    return test.__qualname__.partition(".")[0] if known else "user_passes_test"


def _is_auth_dispatch(function: Any) -> bool:
    """Return whether a function is a ``dispatch()`` that may refuse, of a package or a project."""
    if getattr(function, "__name__", "") != "dispatch":
        return False
    return home(function) in _AUTH_DISPATCH or "handle_no_permission" in names_in(function)


def _unasked(place: str, below: dict[str, bool]) -> checks.CheckMessage:
    names = " and ".join(below)
    if all(below.values()):
        hint = f"Put {names} above @idempotent."
    else:
        hint = f"Put @idempotent on the view's method, post() for example, below {names}."
    return checks.Warning(
        f"{place} has @idempotent around {names}: a replay would skip this authorisation.",
        obj=place,
        id="dblock.W033",
        hint=hint,
    )


def _decorated_methods() -> Iterator[tuple[str, ViewConfig]]:
    """Yield the methods that ``method_decorator`` has decorated, which only the URLconf shows."""
    for view in _views():
        for name, method in _methods(view):
            config = getattr(method, MARK, None)
            if config is not None:
                cls: Any = _class_of(view)
                yield f"{cls.__module__}.{cls.__qualname__}.{name}", config


def _methods(view: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of the class that a view is made of, without running a property."""
    cls = _class_of(view)
    for name in dir(cls) if isinstance(cls, type) else ():
        yield name, getattr_static(cls, name, None)


def _class_of(view: Any) -> Any:
    """Return the class that a view is made of, from REST framework's or Django's attribute."""
    return getattr(view, "cls", None) or getattr(view, "view_class", None)


def _views() -> Iterator[Any]:
    """Yield the views of the URLconf; none in a project without one."""
    if getattr(settings, "ROOT_URLCONF", None):
        yield from _callbacks(get_resolver().url_patterns)


def _callbacks(patterns: Iterable[Any]) -> Iterator[Any]:
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _callbacks(pattern.url_patterns)
        else:
            yield pattern.callback


def _has_users() -> bool:
    """Return whether something sets ``request.user``."""
    if apps.is_installed("rest_framework"):
        return True
    if not apps.is_installed("django.contrib.auth"):
        return False
    users = import_string(_USERS)
    middleware = map(import_string, settings.MIDDLEWARE)
    return any(isinstance(each, type) and issubclass(each, users) for each in middleware)
