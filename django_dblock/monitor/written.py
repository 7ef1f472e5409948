"""Who ended what: in the audit log, and in the admin's own."""

from datetime import datetime

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.http import HttpRequest

from django_dblock.audit import audit_log
from django_dblock.databases import connection_for
from django_dblock.fencing.table import alias_for
from django_dblock.models import FencedLock, LockMonitor
from django_dblock.monitor.words import visible


def log_release(request: HttpRequest, name: str, slot: int, token: int, using: str | None) -> None:
    """Write down that a lease was ended."""
    alias = alias_for(using)
    who, shown = request.user.get_username(), visible(name)
    audit_log.warning(
        "dblock: %s released %s (slot %s) on %r by force: token %s is fenced off",
        who, shown, slot, alias, token,
        extra={"by": who, "lock": name, "slot": slot, "using": alias, "token": token},
    )  # fmt: skip
    row = FencedLock.objects.using(alias).filter(name=name, slot=slot).values_list("pk").first()
    said = f"Released by force: token {token} is fenced off."
    _write(request, FencedLock, str(row[0]) if row else None, f"{shown} (slot {slot})", said)


def log_termination(request: HttpRequest, pid: int, start: datetime, using: str | None) -> None:
    """Write down in the admin that a backend was ended; the audit log knows already."""
    said = f"Ended the backend that began at {start.isoformat()}, on {connection_for(using).alias}."
    _write(request, LockMonitor, None, f"backend {pid}", said)


def _write(
    request: HttpRequest, model: type[Model], pk: str | None, name: str, message: str
) -> None:
    LogEntry.objects.create(
        user_id=request.user.pk,
        content_type=ContentType.objects.get_for_model(model, for_concrete_model=False),
        object_id=pk,
        object_repr=name[:200],
        action_flag=CHANGE,
        change_message=message,
    )
