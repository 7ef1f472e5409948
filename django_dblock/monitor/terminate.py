"""End a backend by force: asked, done to the one that was shown, and written down."""

from datetime import datetime

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import BadRequest
from django.db import Error
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

from django_dblock.exceptions import DblockError
from django_dblock.inspect import AdvisoryLock, advisory_locks
from django_dblock.monitor.written import log_termination
from django_dblock.monitor.address import monitor_url, requested_alias
from django_dblock.monitor.page import one_session
from django_dblock.monitor.views import MAY_TERMINATE, ask, need
from django_dblock.monitor.words import one_line
from django_dblock.operate import terminate_backend


def terminate(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Ask whether to end this backend (``?pid=…&start=…``); a POST ends the one that was shown.

    Raises:
        PermissionDenied: not for this user.
        BadRequest: the form is not ours.
    """
    need(request, MAY_TERMINATE)
    using = requested_alias(request)
    posted = request.method == "POST"
    pid, start = _meant(request.POST if posted else request.GET)
    if posted:
        _terminate(request, pid, start, using)
    elif (locks := _locks(request, using)) is not None:
        mine = [lock for lock in locks if (lock.pid, lock.backend_start) == (pid, start)]
        if mine:
            context = {"title": _("End a backend"), "session": one_session(locks, mine)}
            return ask(request, site, "terminate", context)
        _say_it_is_gone(request, pid)
    return HttpResponseRedirect(monitor_url(site, using=using))


def _meant(given: QueryDict) -> tuple[int, datetime]:
    try:
        pid, start = int(given.get("pid", "")), parse_datetime(given.get("start", ""))
    except ValueError:
        start = None
    if start is None:
        raise BadRequest("This is no backend.")
    return pid, start


def _locks(request: HttpRequest, using: str | None) -> list[AdvisoryLock] | None:
    """Return all; None if that could not be asked, and was told."""
    try:
        return advisory_locks(using)
    except (Error, DblockError) as error:
        messages.error(request, one_line(str(error)))
        return None


def _terminate(request: HttpRequest, pid: int, start: datetime, using: str | None) -> None:
    try:
        ended = terminate_backend(
            pid, backend_start=start, by=request.user.get_username(), using=using
        )
    except (Error, DblockError, ValueError) as error:
        messages.error(request, one_line(str(error)))
        return
    if not ended:
        _say_it_is_gone(request, pid)
        return
    log_termination(request, pid, start, using)
    told = _("Backend %(pid)s was told to end. What it had not committed is rolled back.")
    messages.success(request, told % {"pid": pid})


def _say_it_is_gone(request: HttpRequest, pid: int) -> None:
    gone = _("Backend %(pid)s has ended, or has no lock any more. Nothing was done.")
    messages.warning(request, gone % {"pid": pid})
