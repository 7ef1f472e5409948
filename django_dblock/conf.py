"""The settings, typed and checked.

Each setting is read once and kept, so that a lock does not pay for the look-ups. Django's signal
``setting_changed`` drops the kept values, so that ``override_settings`` works.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal, get_args

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

LabelMode = Literal["full", "first", "off"]

MAX_TIMEOUT = 2_147_483.647
"""The longest time the server's ``lock_timeout`` can express, in seconds: 24.8 days."""

MAX_RETENTION = 100 * 366 * 86_400.0
"""The longest duration that a setting may have, in seconds: a hundred years."""

MAX_NAMESPACE = 100
"""The longest namespace, in characters: it is stored in the rows of leases and of requests."""

namespaces: ContextVar[tuple[str, ...]] = ContextVar("django_dblock_namespaces", default=())
"""The namespaces that were entered with ``namespace()``, the innermost last."""

NEVER_KEPT = frozenset({"set-cookie", "date"})
"""Headers that belong to one response and one client; in lower case."""


def _read(name: str, default: Any, expected: str, valid: Any) -> Any:
    value = getattr(settings, name, default)
    if not valid(value):
        raise ImproperlyConfigured(f"{name} must be {expected}, not {value!r}.")
    return value


def check_namespace(name: object) -> None:
    """Raise an error if a value can't be a namespace.

    Raises:
        TypeError: the name is not a str.
        ValueError: the name is longer than ``MAX_NAMESPACE``, or contains NUL or a lone surrogate,
            which PostgreSQL's text can't contain.
    """
    if not isinstance(name, str):
        raise TypeError(f"A namespace must be a string, not {name!r}.")
    if len(name) > MAX_NAMESPACE:
        raise ValueError(f"A namespace has at most {MAX_NAMESPACE} characters, not {len(name)}.")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"A namespace must not contain NUL or a lone surrogate: {name!r}.")


def _is_dotted_path(value: str) -> bool:
    words = value.split(".")
    if len(words) == 1 or not all(map(str.isidentifier, words)):
        return False
    return words[0] in sys.modules or find_spec(words[0]) is not None


def is_seconds(value: object) -> bool:
    """Return whether a value is a number of seconds that the server can wait."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= MAX_TIMEOUT  # false for NaN
    )


def are_seconds(*values: object) -> bool:
    """Return whether each value is a number of seconds that the server can wait."""
    return all(map(is_seconds, values))


class Conf:
    """The settings ``DBLOCK_*`` with their defaults.

    Raises:
        ImproperlyConfigured: on reading an attribute: the setting has a wrong value.
    """

    @cached_property
    def advisory_timeout(self) -> float | None:
        """``DBLOCK_ADVISORY_TIMEOUT``: seconds to wait if no ``timeout=`` is given; default 10."""
        value: float | None = _read(
            "DBLOCK_ADVISORY_TIMEOUT",
            10,
            f"a number of seconds from 0 to {MAX_TIMEOUT:.0f}, or None to wait indefinitely",
            lambda value: value is None or is_seconds(value),
        )
        return value

    @cached_property
    def database(self) -> str | None:
        """``DBLOCK_DATABASE``: the alias to use if no ``using=`` is given; default None."""
        value: str | None = _read(
            "DBLOCK_DATABASE",
            None,
            f"one of the aliases in DATABASES ({', '.join(settings.DATABASES)}), or None",
            lambda value: value is None or (isinstance(value, str) and value in settings.DATABASES),
        )
        return value

    @property
    def namespace(self) -> str:
        """The current namespace: that of ``namespace()``, else that of ``DBLOCK_NAMESPACE``.

        Read the namespace once for each lock, lease or request, and keep the value with it.

        Raises:
            ImproperlyConfigured: the setting is wrong, or the setting's callable did not return a
                namespace. An error that the callable raises is passed on.
        """
        if entered := namespaces.get():
            return entered[-1]
        source = self.namespace_source
        if isinstance(source, str):
            return source
        name = source()
        try:
            check_namespace(name)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"The callable of DBLOCK_NAMESPACE: {error}") from error
        return name

    @property
    def has_namespaces(self) -> bool:
        """Whether keys are separated: by a setting other than "", or by ``namespace()``."""
        return bool(namespaces.get()) or self.namespace_source != ""

    @cached_property
    def namespace_source(self) -> str | Callable[[], str]:
        """``DBLOCK_NAMESPACE``: a namespace, or a callable that returns a namespace; default "".

        Every key contains the namespace, so two projects in one database with different namespaces
        never share a lock, a lease or a request.

        A string with dots whose first word can be imported is the dotted path of a callable, such
        as "shop.tenants.current". Any other string is the namespace itself.
        """
        value = getattr(settings, "DBLOCK_NAMESPACE", "")
        if callable(value):
            return value  # type: ignore[no-any-return] # its result is checked at each call
        try:
            check_namespace(value)
        except TypeError:
            raise ImproperlyConfigured(
                f"DBLOCK_NAMESPACE must be a string or a callable, not {value!r}."
            ) from None
        except ValueError as error:
            raise ImproperlyConfigured(f"DBLOCK_NAMESPACE: {error}") from error
        if not _is_dotted_path(value):
            return str(value)
        try:
            source = import_string(value)
        except ImportError as error:
            raise ImproperlyConfigured(
                f"DBLOCK_NAMESPACE: {error}. {value!r} is read as the dotted path of a callable, "
                f"because {value.partition('.')[0]!r} can be imported. A literal namespace with "
                f"dots must not begin with the name of a package."
            ) from error
        if not callable(source):
            raise ImproperlyConfigured(
                f"DBLOCK_NAMESPACE must be a string or a callable, and {value!r} is neither: it is "
                f"{source!r}."
            )
        return source  # type: ignore[no-any-return]

    @cached_property
    def labels(self) -> LabelMode:
        """``DBLOCK_LABELS``: the part of a key that ``pg_stat_activity`` shows to all roles.

        ``full`` (the default), ``first`` (the first part only) or ``off``. Keys may contain
        personal data.
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
        """``DBLOCK_ALLOW_SNAPSHOT_ISOLATION``: lock above READ COMMITTED, too; default False."""
        value: bool = _read(
            "DBLOCK_ALLOW_SNAPSHOT_ISOLATION",
            False,  # noqa: FBT003 - a default, not a flag
            "True or False",
            lambda value: isinstance(value, bool),
        )
        return value

    @cached_property
    def prepare(self) -> bool:
        """``DBLOCK_PREPARE``: let the server keep the plans of the statements of leases."""
        value: bool = _read(
            "DBLOCK_PREPARE",
            True,  # noqa: FBT003 - a default, not a flag
            "True or False",
            lambda value: isinstance(value, bool),
        )
        return value

    @cached_property
    def max_keys(self) -> int:
        """``DBLOCK_MAX_KEYS``: the most keys of one ``advisory_locks`` call; default 1,000.

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
        """``DBLOCK_LOCKED_STATUS``: the response's status after a ``LockTimeout``; default 423."""
        value: int = _read(
            "DBLOCK_LOCKED_STATUS",
            423,
            "409, 423 or 503",
            lambda value: type(value) is int and value in (409, 423, 503),
        )
        return value

    @cached_property
    def slow_wait(self) -> float | None:
        """``DBLOCK_SLOW_WAIT``: log a warning after a longer wait; default None, never.

        A timedelta or seconds.
        """
        return _limit("DBLOCK_SLOW_WAIT")

    @cached_property
    def slow_hold(self) -> float | None:
        """``DBLOCK_SLOW_HOLD``: log a warning if a lock is held for longer; default None, never.

        A timedelta or seconds.
        """
        return _limit("DBLOCK_SLOW_HOLD")

    @cached_property
    def dashboard_url(self) -> str | None:
        """``DBLOCK_DASHBOARD_URL``: the address of the lock monitor's link to dashboards; None."""
        value: str | None = _read(
            "DBLOCK_DASHBOARD_URL",
            None,
            "an address that begins with https://, http:// or /, or None",
            lambda value: (
                value is None
                or (isinstance(value, str) and value.startswith(("https://", "http://", "/")))
            ),
        )
        return value

    @cached_property
    def idempotency_ttl(self) -> float:
        """``DBLOCK_IDEMPOTENCY_TTL``: how long a response is kept, from its creation; default 24 h.

        A timedelta or seconds. After that time the same key is a new request. ``ttl=`` overrides
        the setting.
        """
        return _duration("DBLOCK_IDEMPOTENCY_TTL", 86_400)

    @cached_property
    def idempotency_lease(self) -> float:
        """``DBLOCK_IDEMPOTENCY_LEASE``: how long a run in lease mode may be silent; default 60 s.

        A timedelta or seconds, from the start of the run or its last step. After that time the next
        retry takes the request over, or the request waits to be resolved manually. ``lease=``
        overrides the setting.
        """
        return _duration("DBLOCK_IDEMPOTENCY_LEASE", 60)

    @cached_property
    def idempotency_max_body(self) -> int:
        """``DBLOCK_IDEMPOTENCY_MAX_BODY``: the longest response body to keep; default 1 MiB.

        In bytes. A longer body raises :class:`~django_dblock.UnstorableResponse`.
        """
        value: int = _read(
            "DBLOCK_IDEMPOTENCY_MAX_BODY",
            1024 * 1024,
            "a number of bytes from 0 to 100 MiB",
            lambda value: type(value) is int and 0 <= value <= 100 * 1024 * 1024,
        )
        return value

    @cached_property
    def idempotency_max_keys(self) -> int | None:
        """``DBLOCK_IDEMPOTENCY_MAX_KEYS``: the most live keys of one scope; default None, no limit.

        The next key raises :class:`~django_dblock.TooManyIdempotencyKeys`. Concurrent requests do
        not count each other, so a few more keys may be accepted.
        """
        value: int | None = _read(
            "DBLOCK_IDEMPOTENCY_MAX_KEYS",
            None,
            "a whole number above 0, or None",
            lambda value: value is None or (type(value) is int and value > 0),
        )
        return value

    @cached_property
    def idempotency_headers(self) -> tuple[str, ...]:
        """``DBLOCK_IDEMPOTENCY_HEADERS``: headers to keep with a response; default none.

        The package keeps some headers always; these are kept as well. ``Set-Cookie`` and ``Date``
        are refused: both belong to one response and one client.
        """
        value = _read(
            "DBLOCK_IDEMPOTENCY_HEADERS",
            (),
            "a list of header names, without Set-Cookie and Date",
            lambda value: (
                isinstance(value, list | tuple)
                and all(isinstance(name, str) for name in value)
                and not NEVER_KEPT.intersection(name.lower() for name in value)
            ),
        )
        return tuple(value)

    @cached_property
    def idempotency_cipher(self) -> Any:
        """``DBLOCK_IDEMPOTENCY_CIPHER``: the cipher of stored responses; default None.

        An object with ``encrypt(bytes)`` and ``decrypt(bytes)``, or the dotted path of such an
        object. ``cryptography.fernet.MultiFernet`` has both methods, and rotates keys.
        """
        value = getattr(settings, "DBLOCK_IDEMPOTENCY_CIPHER", None)
        try:
            cipher = import_string(value) if isinstance(value, str) else value
        except ImportError as error:
            raise ImproperlyConfigured(f"DBLOCK_IDEMPOTENCY_CIPHER: {error}.") from error
        if not (cipher is None or (hasattr(cipher, "encrypt") and hasattr(cipher, "decrypt"))):
            raise ImproperlyConfigured(
                "DBLOCK_IDEMPOTENCY_CIPHER must be an object with encrypt() and decrypt(), or the "
                "dotted path of one."
            )
        return cipher


def _duration(name: str, default: float) -> float:
    value = _read(
        name,
        default,
        "a timedelta or a number of seconds above 0",
        lambda value: seconds_of(value) is not None,
    )
    return seconds_of(value) or default


def _limit(name: str) -> float | None:
    value = _read(
        name,
        None,
        "a timedelta or a number of seconds above 0, or None",
        lambda value: value is None or seconds_of(value) is not None,
    )
    return seconds_of(value)


def seconds_of(value: object) -> float | None:
    """Return a timedelta or a number as seconds.

    Returns:
        None if the value is neither a timedelta nor a number, is not above 0, or is longer than
        ``MAX_RETENTION``.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= MAX_RETENTION else None


conf = Conf()


@receiver(setting_changed)
def _forget(**_: Any) -> None:
    vars(conf).clear()
