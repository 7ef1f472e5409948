"""Whose request it is, and which: the names that everything else hangs on."""

import hashlib
from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.acquire import Request
from django_dblock.conf import conf
from django_dblock.keys import encode
from django_dblock.labels import NamedKey

_SHOWN = 6


def masked(key: str) -> str:
    """Return the beginning of a key: who knows the whole can have the answer."""
    return f"{key[: min(_SHOWN, len(key) // 2)]}…"


@dataclass(frozen=True, slots=True)
class Identity:
    """One request: ``(scope, key)``, in the database of an alias."""

    scope: str
    key: str
    using: str

    @property
    def facts(self) -> dict[str, str]:
        """What every error and signal about this request carries."""
        return {"scope": self.scope, "key": masked(self.key), "using": self.using}

    def lock(self, connection: BaseDatabaseWrapper) -> Request:
        """Return the request for the advisory lock; its label does not tell the whole key."""
        shown = ("idempotency", self.scope, masked(self.key))
        data = encode(("django_dblock.idempotency", self.scope, self.key))
        return Request.of((NamedKey(shown, data, shown),), shared=False, connection=connection)

    def derived_key(self, name: str) -> str:
        """Return a key for another service's own idempotency: the same in every run of the request.

        64 hexadecimal digits that tell neither scope nor key.
        """
        data = encode(("django_dblock.derived", conf.namespace, self.scope, self.key, name))
        return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for: its fingerprint, and where, for people."""

    fingerprint: bytes
    fingerprint_version: int
    method: str = ""
    path: str = ""

    def parameters(self) -> dict[str, Any]:
        """Put it into the form that the statements take."""
        return {
            "fingerprint": self.fingerprint.hex(),
            "fingerprint_version": self.fingerprint_version,
            "method": self.method,
            "path": self.path,
        }
