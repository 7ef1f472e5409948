"""Log warnings about slow waits and long holds.

The settings are ``DBLOCK_SLOW_WAIT`` and ``DBLOCK_SLOW_HOLD``, the loggers
``django_dblock.advisory`` and ``django_dblock.fencing``. If both settings are None, no receiver is
connected, and locks pay nothing.
"""

import logging
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.dispatch import Signal

from django_dblock import signals
from django_dblock.conf import conf

_ADVISORY = logging.getLogger("django_dblock.advisory")
_FENCING = logging.getLogger("django_dblock.fencing")
_WAITS = {
    signals.lock_acquired: "waited %.3f s for %s on %r",
    signals.lock_timeout: "gave up after %.3f s of waiting for %s on %r",
    signals.lock_deadlock: "ended in a deadlock after %.3f s of waiting for %s on %r",
}


def follow_settings() -> None:
    """Connect the receivers whose setting has a limit; disconnect the others.

    A wrong value counts as no limit here; the system checks report it.
    """
    _listen(list(_WAITS), _waited, wanted=_is_set("slow_wait"))
    _listen([signals.lock_released], _held, wanted=_is_set("slow_hold"))


def _is_set(name: str) -> bool:
    try:
        return getattr(conf, name) is not None
    except ImproperlyConfigured:  # the system checks report it
        return False


def _listen(told: list[Signal], hear: Any, *, wanted: bool) -> None:
    for signal in told:
        if wanted:
            signal.connect(hear, weak=False)
        else:
            signal.disconnect(hear)


def _waited(*, signal: Signal, waited: float, **told: Any) -> None:
    if waited > (conf.slow_wait or 0.0):
        _warn(_WAITS[signal], waited, told, waited=waited)


def _held(*, signal: Signal, held: float, **told: Any) -> None:  # noqa: ARG001 - not to be logged
    if held > (conf.slow_hold or 0.0):
        _warn("held for %.3f s: %s on %r", held, told, held=held)


def _warn(message: str, seconds: float, told: dict[str, Any], **more: float) -> None:
    name, using, kind = told["name"], told["using"], told["kind"]
    (_ADVISORY if kind.startswith("advisory") else _FENCING).warning(
        f"Slow lock: {message}",
        seconds,
        name,
        using,
        extra={"kind": kind, "lock": name, "using": using, "shared": told["shared"], **more},
    )


# The audit log ``django_dblock.audit``: who ended a lock by force, or resolved a request.


audit_log = logging.getLogger("django_dblock.audit")


def doer(by: str | None, alias: str) -> str:
    """Return the user for the audit log: ``by``, else the database role."""
    return by or f"database role {connections[alias].settings_dict['USER']}"
