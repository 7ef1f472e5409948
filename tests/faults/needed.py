"""What a trial needs that not every machine has."""

import importlib.util
import shutil
import sys
from pathlib import Path

from tests.faults.plan import Trial
from tests.faults.services import libfaketime

_MODULES = {
    "redis_py": "redis",
    "cache_add": "redis",
    "python_redis_lock": "redis_lock",
    "django_idempotency_key": "idempotency_key",
}


def missing(trial: Trial) -> str:
    """Say what is not here, or nothing."""
    module = _MODULES.get(trial.system)
    if module and importlib.util.find_spec(module) is None:
        return f"{module} is not installed (the extra 'faults' has it)"
    if module and shutil.which("redis-server") is None:
        return "redis-server is not installed (Debian package redis-server)"
    if trial.nemesis == "pooler" and not program("pgbouncer"):
        return "pgbouncer is not installed (Debian package pgbouncer)"
    if trial.nemesis == "patroni" and not all(map(program, ("patroni", "etcd", "setpriv"))):
        return (
            "patroni, etcd or setpriv is not installed (Debian packages patroni, etcd-server, "
            "util-linux)"
        )
    if trial.nemesis in {"app_clock", "database_clock"}:
        try:
            libfaketime()
        except LookupError as error:
            return str(error)
    return ""


def program(name: str) -> str:
    """Where it is, also beside a Python that was not activated; nothing where it is not."""
    places = (None, str(Path(sys.executable).parent), "/usr/sbin")
    return next(filter(None, (shutil.which(name, path=path) for path in places)), "")
