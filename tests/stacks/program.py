"""What a program in ``programs/`` starts and ends with."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def setup(
    *apps: str, engine: str = "django.db.backends.postgresql", migrate: bool = True, **more: Any
) -> None:
    """Configure Django on the database of ``DATABASE_URL``, with these apps beside ours."""
    import django
    import environ
    from django.conf import settings
    from django.core.management import call_command

    database = {
        **environ.Env().db_url("DATABASE_URL"),
        "ENGINE": engine,
        **more.pop("DATABASE", {}),
    }
    settings.configure(
        **{
            "DATABASES": {"default": database},
            "INSTALLED_APPS": [
                *apps,
                "django.contrib.contenttypes",
                "django.contrib.auth",
                "django_dblock",
            ],
            "SECRET_KEY": "stacks",
            "USE_TZ": True,
            "ALLOWED_HOSTS": ["*"],
            "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
            **more,
        }
    )
    django.setup()
    if migrate:
        call_command("migrate", run_syncdb=True, verbosity=0)


def outlive(lease: Any, ttl: float) -> None:
    """Work under a lease for twice its ttl; it is held all the time, by the database's clock.

    Raises:
        LockLost: the heartbeat did not renew the lease.
    """
    from django.db import connections

    def held_for() -> float:
        lease.check()
        with connections[lease.using].cursor() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM clock_timestamp() - acquired_at)"
                " FROM django_dblock_fencedlock"
                " WHERE token = %s AND expires_at > clock_timestamp()",
                [lease.token],
            )
            [seconds] = cursor.fetchone()
        return float(seconds)

    until(lambda: held_for() > 2 * ttl, "the lease is held for twice its ttl")


def until(condition: Callable[[], Any], what: str, limit: float = 60) -> None:
    """Ask again and again until the condition is true."""
    deadline = now() + limit
    while not condition():
        assert now() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def now() -> float:
    """Return seconds of a clock that no test tool stops."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def report(**values: Any) -> None:
    """Print what was found, for ``run_program``, and end at once.

    Agents have threads that look for a server until the process ends, and may hold it up.
    """
    sys.stdout.write(json.dumps(values, default=str) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
