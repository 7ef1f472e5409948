"""What the server would tell, made by hand."""

from datetime import UTC, datetime
from zlib import crc32

from django_dblock.inspect import AdvisoryLock, FencedLease, UnfinishedRequest

START = datetime(2026, 1, 1, tzinfo=UTC)


def lock(pid, name="a", *, number=None, **changes):
    """A lock that is held."""
    number = crc32(repr(name).encode()) if number is None else number
    facts = {
        "name": name, "key_id": number, "classid": 1, "objid": number, "shared": False,
        "granted": True, "pid": pid, "blocked_by": (), "waiting": None, "transaction_age": 1.0,
        "application_name": f"shop lock[{name}]", "user": "app", "client": "10.0.0.1",
        "state": "idle in transaction", "query": "SELECT 1", "hidden": False,
        "backend_start": START,
    }  # fmt: skip
    return AdvisoryLock(**{**facts, **changes})


def wanted(pid, name="a", *, behind=(), waiting=1.0, **changes):
    """A lock that is waited for."""
    return lock(
        pid, name, granted=False, blocked_by=tuple(behind), waiting=waiting, state="active",
        **changes,
    )  # fmt: skip


def lease(name="nightly", **changes):
    """A lease that was renewed a moment ago."""
    facts = {
        "name": name, "slot": 0, "state": "held", "token": 7, "owner": "web-1:1:Main", "age": 60.0,
        "renewed": 3.0, "remaining": 27.0, "lock_delay": 0.0, "free_in": 27.0, "grants": 3,
        "metadata": {}, "waiting": (),
    }  # fmt: skip
    return FencedLease(**{**facts, **changes})


def request(pk=1, **changes):
    """A request that somebody is at work on."""
    facts = {
        "id": pk, "state": "leased", "scope": "user:7", "key": "3f1c0a…", "method": "POST",
        "path": "/pay/", "owner": "web-1:1:Main", "token": 1, "age": 3.0, "remaining": 57.0,
        "expires_in": None, "steps": ("charge",), "namespace": "",
    }  # fmt: skip
    return UnfinishedRequest(**{**facts, **changes})
