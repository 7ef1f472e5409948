"""System checks of views: guards that can't work where the view stands, or as it answers."""

import inspect
from collections.abc import Iterable, Iterator
from inspect import getattr_static
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string
from django.views import View

from django_dblock.checks.decorator_chain import Layer, calls, free, home, ways
from django_dblock.conf import conf
from django_dblock.core.decorators import Guard, guards_of
from django_dblock.idempotency.decorator import MARK, decorated, idempotent
from django_dblock.idempotency.request import ViewConfig

_STREAMS = frozenset({"StreamingHttpResponse", "FileResponse"})


@checks.register(checks.Tags.urls)
def check_guards(**_: Any) -> list[checks.CheckMessage]:
    """Find views that need to be outside of ATOMIC_REQUESTS (W031), and streams (W032)."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    found: dict[tuple[Any, ...], checks.CheckMessage] = {}
    for view in _views(get_resolver().url_patterns):
        for function in _functions(view):
            for guard in guards_of(function):
                for message in (*_inside(view, function, guard), *_streaming(function, guard)):
                    found[message.id, message.msg] = message  # a view may have several URLs
    return list(found.values())


def _views(patterns: list[Any]) -> Iterator[Any]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _views(pattern.url_patterns)
        else:
            yield pattern.callback


def _functions(view: Any) -> Iterator[Any]:
    """Return the view if it is a function, and the methods of the class that it is made of."""
    yield view
    cls = getattr(view, "cls", None) or getattr(view, "view_class", None)
    for name in dir(cls) if isinstance(cls, type) else ():
        method = inspect.getattr_static(cls, name, None)  # runs no property of a class
        if callable(method):
            yield method


def _inside(view: Any, function: Any, guard: Guard) -> Iterator[checks.CheckMessage]:
    alias = guard.using or conf.database or DEFAULT_DB_ALIAS
    if alias not in connections or not connections[alias].settings_dict["ATOMIC_REQUESTS"]:
        return
    if not guard.outside or alias in getattr(view, "_non_atomic_requests", ()):
        return
    kind = "Async, it" if iscoroutinefunction(view) else "It"
    yield checks.Warning(
        f"{_name(function)} is decorated with @{guard.name} and runs inside the transaction that "
        f"ATOMIC_REQUESTS opens on database {alias!r}. {kind} would raise at each request.",
        obj=_name(function),
        id="dblock.W031",
        hint=f"Decorate the view, or what as_view() returns in the URLconf, with "
        f"transaction.non_atomic_requests(using={alias!r}).",
    )


def _streaming(function: Any, guard: Guard) -> Iterator[checks.CheckMessage]:
    names = _STREAMS.intersection(_code_names(function))
    if not names:
        return
    what = (
        "an answer that is a stream can't be kept"
        if guard.name == "idempotent"
        else "the stream is sent when the lock is gone"
    )
    yield checks.Warning(
        f"{_name(function)} is decorated with @{guard.name} and answers with a "
        f"{' or a '.join(sorted(names))}: {what}.",
        obj=_name(function),
        id="dblock.W032",
        hint="Read what the stream needs inside the view, and answer with a plain HttpResponse; or "
        "guard the code that makes the stream, not the view.",
    )


def _code_names(function: Any) -> Iterator[str]:
    """Return the global names that the code itself uses, below all decorators."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        function = inner
    yield from getattr(getattr(function, "__code__", None), "co_names", ())


def _name(function: Any) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


# System checks of views: whose keys would be nobody's, and who would get an answer unasked.


_MIDDLEWARE = "django.contrib.auth.middleware.AuthenticationMiddleware"
_DECIDES = ("django.contrib.auth.decorators", "django.contrib.admin.views.decorators")
_REFUSES = ("django.contrib.auth.mixins", "rest_framework.views")


@checks.register(checks.Tags.urls)
def check_views(**_: Any) -> list[checks.CheckMessage]:
    """Find views with ``@idempotent`` and no ``scope=`` where no client can be logged in (W030)."""
    if _has_users():
        return []
    found = dict(_methods())  # imports the views, and only then they are known
    found.update(decorated)
    return [
        checks.Warning(
            f"{name} is decorated with @idempotent without scope=, and nothing here logs clients "
            f"in: each request would end in ImproperlyConfigured.",
            obj=name,
            id="dblock.W030",
            hint=f"Say whose key it is: @idempotent(scope=lambda request: …); or add {_MIDDLEWARE} "
            f"to MIDDLEWARE.",
        )
        for name, config in found.items()
        if config.scope is None
    ]


@checks.register(checks.Tags.urls)
def check_order(**_: Any) -> list[checks.CheckMessage]:
    """Find authorisation below ``@idempotent``, which a replay goes past (W033)."""
    found: dict[str, dict[str, bool]] = {}
    for view in _idempotent_views():
        for method, way in ways(view):
            for number, layer in enumerate(way):
                if _protects(layer, method):
                    found.setdefault(layer.place, {}).update(_below(layer, way[number:]))
    return [_unasked(place, below) for place, below in found.items() if below]


def _protects(layer: Layer, method: str) -> bool:
    """Whether it is ``@idempotent``, and for this method of a class."""
    if home(layer.function) != idempotent.__module__:
        return False
    config: ViewConfig = getattr(layer.function, MARK)
    return method not in View.http_method_names or method.upper() in config.methods


def _below(around: Layer, way: list[Layer]) -> Iterator[tuple[str, bool]]:
    """Return what decides who may come in, and whether it is a decorator in the same place."""
    for layer in way:
        name = _decorator(layer.function)
        if name is not None:
            yield name, layer.place == around.place
        elif _is_mixin(layer.function):
            yield layer.function.__qualname__.split(".")[-2], False


def _decorator(function: Any) -> str | None:
    """Return the name of Django's decorator that has made it, if it decides who may come in."""
    if home(function) != _DECIDES[0]:
        return None
    test = free(function, "test_func")
    known = getattr(test, "__module__", "") in _DECIDES
    return test.__qualname__.partition(".")[0] if known else "user_passes_test"


def _is_mixin(function: Any) -> bool:
    """Whether it is a ``dispatch()`` that refuses: Django's, REST framework's, or one's own."""
    if getattr(function, "__name__", "") != "dispatch":
        return False
    return home(function) in _REFUSES or calls(function, "handle_no_permission")


def _unasked(place: str, below: dict[str, bool]) -> checks.CheckMessage:
    names = " and ".join(below)
    if all(below.values()):
        hint = f"Put {names} above @idempotent."
    else:
        hint = f"Put @idempotent on the view's method, post() for example, below {names}."
    return checks.Warning(
        f"{place} has @idempotent around {names}: a replay would be given without asking again "
        f"whether the client may come in.",
        obj=place,
        id="dblock.W033",
        hint=hint,
    )


def _methods() -> Iterator[tuple[str, ViewConfig]]:
    """Find what ``method_decorator`` has decorated: it stands in the classes of the URLconf."""
    for view in _idempotent_views():
        cls: Any = getattr(view, "view_class", None) or getattr(view, "cls", None)
        for name in dir(cls) if cls is not None else ():
            config = getattr(getattr_static(cls, name, None), MARK, None)
            if config is not None:
                yield f"{cls.__module__}.{cls.__qualname__}.{name}", config


def _idempotent_views() -> Iterator[Any]:
    """Find the views of the URLconf."""
    if getattr(settings, "ROOT_URLCONF", None):  # else it is a project of workers
        yield from _callbacks(get_resolver().url_patterns)


def _callbacks(patterns: Iterable[Any]) -> Iterator[Any]:
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _callbacks(pattern.url_patterns)
        else:
            yield pattern.callback


def _has_users() -> bool:
    """Whether something sets ``request.user``."""
    if apps.is_installed("rest_framework"):
        return True
    if not apps.is_installed("django.contrib.auth"):
        return False
    ours = import_string(_MIDDLEWARE)
    found = map(import_string, settings.MIDDLEWARE)
    return any(isinstance(each, type) and issubclass(each, ours) for each in found)
