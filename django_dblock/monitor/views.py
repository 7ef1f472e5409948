"""The views of the lock monitor: the page, and the questions before something is ended."""

from datetime import datetime
from typing import Any, NamedTuple

import django
from django.apps import apps
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import BadRequest, PermissionDenied
from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from django_dblock.advisory.operations import terminate_backend
from django_dblock.conf import conf
from django_dblock.core.connection import connection_for
from django_dblock.core.logging import audit_log
from django_dblock.exceptions import DblockError
from django_dblock.fencing.lease_name import title_of
from django_dblock.fencing.operations import force_release_grant
from django_dblock.fencing.store import alias_for
from django_dblock.inspect import (
    FencedLease,
    LockWaits,
    fenced_leases,
    is_own_lease,
    lock_waits,
    short_wait,
)
from django_dblock.models import MAY_RELEASE, MAY_SEE_OTHERS, MAY_TERMINATE, FencedLock, LockMonitor
from django_dblock.monitor.formatting import one_line, visible
from django_dblock.monitor.page import one_blocker, one_session, read

# The audit log and the admin's log.


def log_release(request: HttpRequest, name: str, slot: int, token: int, using: str | None) -> None:
    """Write the release of a lease to the audit log and the admin's log."""
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
    """Write the end of a backend to the admin's log; terminate_backend() writes the audit log."""
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


# The addresses of the monitor's pages, and their parameters.


MONITOR = "changelist"
RELEASE, TERMINATE = "release", "terminate"
REFRESH = (0, 2, 5, 30)
"""Every how many seconds; 0 is never."""

_DEFAULT_REFRESH = 5
_LONGEST_SEARCH = 200


def url_name(page: str) -> str:
    """Return the name of a page's URL; the admin's list links to the first page."""
    return f"django_dblock_lockmonitor_{page}"


def monitor_url(site: AdminSite, page: str = MONITOR, **parameters: Any) -> str:
    """Return the address of a page, without parameters that are None or empty."""
    path = reverse(f"admin:{url_name(page)}", current_app=site.name)
    given = {name: value for name, value in parameters.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def available_aliases() -> list[str]:
    """Return the databases that are PostgreSQL."""
    return [
        requested_alias
        for requested_alias in connections
        if connections[requested_alias].vendor == "postgresql"
    ]


def requested_alias(request: HttpRequest) -> str | None:
    """Return the requested database alias; None leaves it to the settings and the router.

    Raises:
        BadRequest: there is no such database.
    """
    given = request.POST.get("using") or request.GET.get("using")
    if given and given not in available_aliases():
        raise BadRequest("This database does not exist.")
    return given or None


def requested_search(request: HttpRequest) -> str:
    """Return the search text."""
    return request.GET.get("q", "").strip()[:_LONGEST_SEARCH]


def requested_refresh(request: HttpRequest) -> int:
    """Return the seconds between two refreshes of the page; 0 for never."""
    given = request.GET.get("refresh", "")
    return int(given) if given in map(str, REFRESH) else _DEFAULT_REFRESH


def show(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Show what is locked; with ``?fragment=1`` only the part of the page that changes.

    Raises:
        BadRequest: there is no such database.
    """
    using, search = requested_alias(request), requested_search(request)
    refresh = requested_refresh(request)
    sees_others = request.user.has_perm(MAY_SEE_OTHERS)  # type: ignore[union-attr] # signed in
    shown, told = read(using, search, own_namespace=not sees_others)
    kept: dict[str, Any] = {"using": using, "q": search}
    context = {
        "page": shown,
        "told": told,
        "using": using,
        "current": using or conf.database or DEFAULT_DB_ALIAS,
        "search": search,
        "may_release": request.user.has_perm(MAY_RELEASE),  # type: ignore[union-attr] # signed in
        "may_terminate": request.user.has_perm(MAY_TERMINATE),  # type: ignore[union-attr]
        "may_end_others": sees_others,
        "only_namespace": conf.namespace if conf.has_namespaces and not sees_others else None,
        "release_url": monitor_url(site, RELEASE),
        "terminate_url": monitor_url(site, TERMINATE),
    }
    if "fragment" in request.GET:
        return TemplateResponse(request, "django_dblock/admin/monitor_live.html", context)
    context |= {
        **site.each_context(request),
        "is_nav_sidebar_enabled": False,  # the picture needs the room
        **_breadcrumbs(),
        "title": _("Lock monitor"),
        "dashboard_url": conf.dashboard_url,
        "refresh": refresh,
        "refreshes": [(each, monitor_url(site, **kept, refresh=each)) for each in REFRESH],
        "aliases": [(each, monitor_url(site, using=each)) for each in available_aliases()],
        "here": monitor_url(site, **kept, refresh=refresh),
        "start": monitor_url(site),
        "without_search": monitor_url(site, using=using, refresh=refresh),
    }
    return TemplateResponse(request, "django_dblock/admin/monitor.html", context)


def _breadcrumbs() -> dict[str, Any]:
    return {
        "app_name": apps.get_app_config("django_dblock").verbose_name,
        "breadcrumb_list": django.VERSION >= (6, 1),  # the admin's own markup has changed
    }


def ask(
    request: HttpRequest, site: AdminSite, question: str, context: dict[str, Any]
) -> HttpResponse:
    """Show a question, with what it is about and the way back."""
    using = requested_alias(request)
    context = {
        **site.each_context(request),
        "is_nav_sidebar_enabled": False,
        **_breadcrumbs(),
        "using": using,
        "back": monitor_url(site, using=using),
        **context,
    }
    return TemplateResponse(request, f"django_dblock/admin/{question}.html", context)


def need(request: HttpRequest, permission: str) -> None:
    """Return if the user has the permission.

    Raises:
        PermissionDenied: the user does not have it.
    """
    if not request.user.has_perm(permission):  # type: ignore[union-attr] # signed in
        raise PermissionDenied


# Releasing leases by force: the page asks, releases only the grants that were shown, and logs that.


_PATIENCE = 5.0
"""Seconds that a request waits for a guarded transaction to end."""


class Grant(NamedTuple):
    """A grant as it was shown; a later grant of the name is another one."""

    slot: int
    token: int
    name: str

    def __str__(self) -> str:
        return f"{self.slot}:{self.token}:{self.name}"

    @classmethod
    def read(cls, text: str) -> "Grant":
        """Return the grant that a form's field names.

        Raises:
            BadRequest: the text is not from this package's form.
        """
        try:
            slot, token, name = text.split(":", 2)
            return cls(int(slot), int(token), name)
        except ValueError as error:
            raise BadRequest("The form does not name a lease.") from error


def release(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Ask whether to release these leases (``?lease=SLOT:NAME``); a POST releases the shown grants.

    Raises:
        PermissionDenied: the user lacks the permission.
        BadRequest: the form is not ours.
    """
    need(request, MAY_RELEASE)
    using = requested_alias(request)
    back = HttpResponseRedirect(monitor_url(site, using=using))
    if request.method == "POST":
        for grant in [Grant.read(text) for text in request.POST.getlist("grant")]:
            _need_own_lease(request, grant.name)
            _release(request, grant, using)
        return back
    wanted = set(request.GET.getlist("lease"))
    held = _held(request, using)
    if held is None:
        return back
    leases = [lease for lease in held if f"{lease.slot}:{lease.name}" in wanted]
    if not leases:
        messages.info(request, _("The lease is no longer held. Nothing was done."))
        return back
    rows = [(str(Grant(each.slot, each.token, each.name)), each) for each in leases]
    return ask(request, site, "release", {"title": _("Release a lease by force"), "rows": rows})


def _need_own_lease(request: HttpRequest, name: str) -> None:
    if not is_own_lease(name, conf.namespace):
        need(request, MAY_SEE_OTHERS)


def _held(request: HttpRequest, using: str | None) -> list[FencedLease] | None:
    """Return the held leases that the user may see; None after an error, which is shown."""
    sees_others = request.user.has_perm(MAY_SEE_OTHERS)  # type: ignore[union-attr]
    try:
        with short_wait(alias_for(using)):
            leases = fenced_leases(using, own_namespace=not sees_others)
    except (Error, DblockError) as error:
        messages.error(request, one_line(str(error)))
        return None
    return [lease for lease in leases if lease.state == "held"]


def _release(request: HttpRequest, grant: Grant, using: str | None) -> None:
    said = {"name": visible(title_of(grant.name, grant.slot))}
    try:
        ended = force_release_grant(
            grant.name, grant.slot, grant.token, patience=_PATIENCE, using=using
        )
    except (Error, DblockError) as error:
        said["error"] = one_line(str(error))
        messages.error(
            request,
            _(
                "%(name)s was not released: %(error)s. If its holder has an open guarded "
                "transaction, wait until that has ended; then try again."
            )
            % said,
        )
        return
    if ended:
        log_release(request, grant.name, grant.slot, grant.token, using)
        said_so = _("%(name)s is released. Its holder notices at its next heartbeat or guard.")
        messages.success(request, said_so % said)
    else:
        said_so = _("%(name)s has ended, or has another holder by now. Nothing was done.")
        messages.warning(request, said_so % said)


# Ending a backend by force: the page asks, ends only the backend that was shown, and logs that.


def terminate(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Ask whether to end this backend (``?pid=…&start=…``); a POST ends the one that was shown.

    Raises:
        PermissionDenied: the user lacks the permission.
        BadRequest: the form is not ours.
    """
    need(request, MAY_TERMINATE)
    using = requested_alias(request)
    posted = request.method == "POST"
    pid, start = _meant(request.POST if posted else request.GET)
    waits = _waits(request, using)
    if waits is not None:
        # If the start is hidden, ending the backend is refused with the reason.
        starts = (start, None) if posted else (start,)
        mine = [each for each in waits.locks if each.pid == pid and each.backend_start in starts]
        others = [
            each for each in waits.blockers if each.pid == pid and each.backend_start in starts
        ]
        if others:
            need(request, MAY_SEE_OTHERS)
        if not mine and not others:
            _say_it_is_gone(request, pid)
        elif posted:
            _terminate(request, pid, start, using, blocking=bool(others))
        else:
            context = {
                "title": _("End a backend"),
                "session": one_session(waits.locks, mine) if mine else one_blocker(others[0]),
            }
            return ask(request, site, "terminate", context)
    return HttpResponseRedirect(monitor_url(site, using=using))


def _meant(given: QueryDict) -> tuple[int, datetime]:
    try:
        pid, start = int(given.get("pid", "")), parse_datetime(given.get("start", ""))
    except ValueError:
        start = None
    if start is None:
        raise BadRequest("The request does not name a backend.")
    return pid, start


def _waits(request: HttpRequest, using: str | None) -> LockWaits | None:
    """Return the locks that the user may see; None after an error, which is shown."""
    sees_others = request.user.has_perm(MAY_SEE_OTHERS)  # type: ignore[union-attr] # signed in
    try:
        return lock_waits(using, own_namespace=not sees_others)
    except (Error, DblockError) as error:
        messages.error(request, one_line(str(error)))
        return None


def _terminate(
    request: HttpRequest, pid: int, start: datetime, using: str | None, *, blocking: bool
) -> None:
    try:
        ended = terminate_backend(
            pid,
            backend_start=start,
            by=request.user.get_username(),
            using=using,
            blocking=blocking,
        )
    except (Error, DblockError, ValueError) as error:
        messages.error(request, one_line(str(error)))
        return
    if not ended:
        _say_it_is_gone(request, pid)
        return
    log_termination(request, pid, start, using)
    told = _("Backend %(pid)s is being ended. Its uncommitted changes are rolled back.")
    messages.success(request, told % {"pid": pid})


def _say_it_is_gone(request: HttpRequest, pid: int) -> None:
    gone = _("Backend %(pid)s has already ended, or holds no lock any more. Nothing was done.")
    messages.warning(request, gone % {"pid": pid})
