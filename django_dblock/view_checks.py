"""System checks of views: guards that can't work where the view stands, or as it answers."""

import inspect
from collections.abc import Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections
from django.urls import URLResolver, get_resolver

from django_dblock.conf import conf
from django_dblock.guards import Guard, guards_of

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
