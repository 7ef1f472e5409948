"""The settings, typed and checked. A leaf.

Each is read once and kept until Django says that a setting changed, so that ``override_settings``
works and a lock does not pay for the look-ups.
"""

from functools import cached_property
from typing import Any, Literal, get_args

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

LabelMode = Literal["full", "first", "off"]

MAX_TIMEOUT = 2_147_483.647
"""The longest time the server's ``lock_timeout`` can express, in seconds: 24.8 days."""


def _read(name: str, default: Any, expected: str, valid: Any) -> Any:
    value = getattr(settings, name, default)
    if not valid(value):
        raise ImproperlyConfigured(f"{name} must be {expected}, not {value!r}.")
    return value


def is_seconds(value: object) -> bool:
    """Whether this is a number of seconds that the server can wait."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= MAX_TIMEOUT  # false for NaN
    )


class Conf:
    """``settings.DBLOCK_*`` with their defaults; a wrong value raises ImproperlyConfigured."""

    @cached_property
    def advisory_timeout(self) -> float | None:
        """``DBLOCK_ADVISORY_TIMEOUT``: seconds to wait where no ``timeout=`` is given; 10."""
        value: float | None = _read(
            "DBLOCK_ADVISORY_TIMEOUT",
            10,
            f"a number of seconds from 0 to {MAX_TIMEOUT:.0f}, or None to wait for ever",
            lambda value: value is None or is_seconds(value),
        )
        return value

    @cached_property
    def database(self) -> str | None:
        """``DBLOCK_DATABASE``: the alias used where no ``using=`` is given; None."""
        value: str | None = _read(
            "DBLOCK_DATABASE",
            None,
            f"one of the aliases in DATABASES ({', '.join(settings.DATABASES)}), or None",
            lambda value: value is None or (isinstance(value, str) and value in settings.DATABASES),
        )
        return value

    @cached_property
    def namespace(self) -> str:
        """``DBLOCK_NAMESPACE``: salts every key; two projects in one database never meet."""
        value: str = _read("DBLOCK_NAMESPACE", "", "a string", lambda value: isinstance(value, str))
        return value

    @cached_property
    def labels(self) -> LabelMode:
        """``DBLOCK_LABELS``: what of a key any role on the server may read in ``pg_stat_activity``.

        ``full`` (the default), ``first`` (the first part only) or ``off``: keys may hold personal
        data.
        """
        value: LabelMode = _read(
            "DBLOCK_LABELS",
            "full",
            "'full', 'first' (the first part of the key only) or 'off'",
            lambda value: value in get_args(LabelMode),
        )
        return value

    @cached_property
    def allow_snapshot_isolation(self) -> bool:
        """``DBLOCK_ALLOW_SNAPSHOT_ISOLATION``: lock above READ COMMITTED too; False."""
        value: bool = _read(
            "DBLOCK_ALLOW_SNAPSHOT_ISOLATION",
            False,  # noqa: FBT003 - a default, not a flag
            "True or False",
            lambda value: isinstance(value, bool),
        )
        return value

    @cached_property
    def max_keys(self) -> int:
        """``DBLOCK_MAX_KEYS``: the most keys one ``advisory_locks`` call may take; 1,000.

        Every lock takes a place in a table that the whole cluster shares.
        """
        value: int = _read(
            "DBLOCK_MAX_KEYS",
            1000,
            "a whole number above 0",
            lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        )
        return value

    @cached_property
    def locked_status(self) -> int:
        """``DBLOCK_LOCKED_STATUS``: what a request that waited in vain is answered with; 423."""
        value: int = _read(
            "DBLOCK_LOCKED_STATUS",
            423,
            "409, 423 or 503",
            lambda value: type(value) is int and value in (409, 423, 503),
        )
        return value


conf = Conf()


@receiver(setting_changed)
def _forget(**_: Any) -> None:
    vars(conf).clear()
