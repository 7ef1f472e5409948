"""System check of views: whose keys would be nobody's is said before the first client comes."""

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.urls import get_resolver
from django.utils.module_loading import import_string

from django_dblock.idempotency.decorator import decorated

_MIDDLEWARE = "django.contrib.auth.middleware.AuthenticationMiddleware"


@checks.register(checks.Tags.urls)
def check_views(**_: Any) -> list[checks.CheckMessage]:
    """Find views with ``@idempotent`` and no ``scope=`` where no client can be logged in (W030)."""
    if getattr(settings, "ROOT_URLCONF", None):  # a project of workers has none
        get_resolver().url_patterns  # noqa: B018 - views are known once they are imported
    if _has_users():
        return []
    return [
        checks.Warning(
            f"{name} is decorated with @idempotent without scope=, and nothing here logs clients "
            f"in: each request would end in ImproperlyConfigured.",
            obj=name,
            id="dblock.W030",
            hint=f"Say whose key it is: @idempotent(scope=lambda request: …); or add {_MIDDLEWARE} "
            f"to MIDDLEWARE.",
        )
        for name, wanted in decorated.items()
        if wanted.scope is None
    ]


def _has_users() -> bool:
    """Whether something sets ``request.user``."""
    if apps.is_installed("rest_framework"):
        return True
    if not apps.is_installed("django.contrib.auth"):
        return False
    ours = import_string(_MIDDLEWARE)
    found = map(import_string, settings.MIDDLEWARE)
    return any(isinstance(each, type) and issubclass(each, ours) for each in found)
