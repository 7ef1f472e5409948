"""The system checks that the app has registered: each imports its module when it runs."""

from collections.abc import Callable
from typing import Any

from django.core import checks


def tags_of(check: Callable[..., Any]) -> tuple[str, ...]:
    """Return the tags under which the app has registered a function of ``django_dblock.checks``."""
    registered = [
        each
        for each in checks.registry.registry.registered_checks
        if each.__module__ == "django_dblock.apps" and each.__name__ == check.__name__
    ]
    assert len(registered) == 1, f"{check.__name__} is registered {len(registered)} times"
    return registered[0].tags
