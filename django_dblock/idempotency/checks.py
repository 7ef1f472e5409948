"""System checks of views: whose keys would be nobody's, and who would get an answer unasked."""

from collections.abc import Iterable, Iterator
from inspect import getattr_static
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.urls import get_resolver
from django.utils.module_loading import import_string
from django.views import View

from django_dblock.idempotency.decorator import MARK, decorated, idempotent
from django_dblock.idempotency.request import Wanted
from django_dblock.idempotency.ways import Layer, calls, free, home, ways

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
        for name, wanted in found.items()
        if wanted.scope is None
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
    wanted: Wanted = getattr(layer.function, MARK)
    return method not in View.http_method_names or method.upper() in wanted.methods


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


def _methods() -> Iterator[tuple[str, Wanted]]:
    """Find what ``method_decorator`` has decorated: it stands in the classes of the URLconf."""
    for view in _idempotent_views():
        cls: Any = getattr(view, "view_class", None) or getattr(view, "cls", None)
        for name in dir(cls) if cls is not None else ():
            wanted = getattr(getattr_static(cls, name, None), MARK, None)
            if wanted is not None:
                yield f"{cls.__module__}.{cls.__qualname__}.{name}", wanted


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
