"""System check of views: whose keys would be nobody's is said before the first client comes."""

from collections.abc import Iterable, Iterator
from inspect import getattr_static
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.urls import get_resolver
from django.utils.module_loading import import_string

from django_dblock.idempotency.decorator import MARK, decorated
from django_dblock.idempotency.request import Wanted

_MIDDLEWARE = "django.contrib.auth.middleware.AuthenticationMiddleware"


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


def _methods() -> Iterator[tuple[str, Wanted]]:
    """Find what ``method_decorator`` has decorated: it stands in the classes of the URLconf."""
    if not getattr(settings, "ROOT_URLCONF", None):  # a project of workers
        return
    for cls in _classes(get_resolver().url_patterns):
        for name in dir(cls):
            wanted = getattr(getattr_static(cls, name, None), MARK, None)
            if wanted is not None:
                yield f"{cls.__module__}.{cls.__qualname__}.{name}", wanted


def _classes(patterns: Iterable[Any]) -> Iterator[type]:
    """Find the classes of views, those of Django and of REST framework."""
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _classes(pattern.url_patterns)
            continue
        view = pattern.callback
        cls = getattr(view, "view_class", None) or getattr(view, "cls", None)
        if cls is not None:
            yield cls


def _has_users() -> bool:
    """Whether something sets ``request.user``."""
    if apps.is_installed("rest_framework"):
        return True
    if not apps.is_installed("django.contrib.auth"):
        return False
    ours = import_string(_MIDDLEWARE)
    found = map(import_string, settings.MIDDLEWARE)
    return any(isinstance(each, type) and issubclass(each, ours) for each in found)
