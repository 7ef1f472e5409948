"""The app's registration: its name and its system checks."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Tags, register
from django.core.signals import setting_changed


def _imported_when_run(module: str, name: str) -> Callable[..., Sequence[CheckMessage]]:
    """Return a system check that imports its module at its first run."""

    def check(**options: Any) -> Sequence[CheckMessage]:
        home = import_module(f"django_dblock.checks.{module}")
        messages: Sequence[CheckMessage] = getattr(home, name)(**options)
        return messages

    check.__name__ = name
    return check


# The modules of the checks import most of the package, so each is imported when its check runs: a
# process that runs no checks does not pay for them. Made once, because ready() runs again whenever
# tests replace INSTALLED_APPS, and the registry keeps each function once.
_CHECKS: tuple[tuple[Callable[..., Sequence[CheckMessage]], tuple[str, ...]], ...] = tuple(
    (_imported_when_run(module, name), tags)
    for module, name, tags in (
        ("settings", "check_settings", ()),
        ("settings", "check_server", (Tags.database,)),
        ("settings", "check_tables", (Tags.database,)),
        ("models", "check_models", (Tags.models,)),
        ("models", "check_admin", (Tags.admin,)),
        ("views", "check_guards", (Tags.urls,)),
        ("views", "check_views", (Tags.urls,)),
        ("views", "check_order", (Tags.urls,)),
    )
)


class DblockConfig(AppConfig):
    """``INSTALLED_APPS = [..., "django_dblock"]``."""

    name = "django_dblock"
    verbose_name = "Database locks"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and begin to log slow locks where a setting asks for it."""
        for check, tags in _CHECKS:
            register(check, *tags)
        from django.conf import settings

        # conf forgets its values on the same signal: its receiver has to be connected first.
        from django_dblock import conf  # noqa: F401

        setting_changed.connect(_follow_setting, dispatch_uid="django_dblock.apps")
        for name in ("DBLOCK_SLOW_WAIT", "DBLOCK_SLOW_HOLD"):
            if getattr(settings, name, None) is not None:
                _follow_setting(setting=name)


def _follow_setting(*, setting: str, **_: Any) -> None:
    """Start or stop the log of slow locks after a change of its settings."""
    if setting.startswith("DBLOCK_SLOW_"):
        from django_dblock.core.logging import follow_settings

        follow_settings()
