"""The page; and the question that is asked before something is ended by force."""

from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from django_dblock.conf import conf
from django_dblock.monitor.address import REFRESH, RELEASE, TERMINATE, available_aliases, monitor_url, requested_alias, requested_refresh, requested_search
from django_dblock.monitor.read import read

MAY_RELEASE = "django_dblock.release_fencedlock"
MAY_TERMINATE = "django_dblock.terminate_backend"


def show(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Show what is locked; with ``?fragment=1`` only the part of the page that changes.

    Raises:
        BadRequest: there is no such database.
    """
    using, search = requested_alias(request), requested_search(request)
    refresh = requested_refresh(request)
    shown, told = read(using, search)
    kept: dict[str, Any] = {"using": using, "q": search}
    context = {
        "page": shown,
        "told": told,
        "using": using,
        "current": using or conf.database or DEFAULT_DB_ALIAS,
        "search": search,
        "may_release": request.user.has_perm(MAY_RELEASE),  # type: ignore[union-attr] # signed in
        "may_terminate": request.user.has_perm(MAY_TERMINATE),  # type: ignore[union-attr]
        "release_url": monitor_url(site, RELEASE),
        "terminate_url": monitor_url(site, TERMINATE),
    }
    if "fragment" in request.GET:
        return TemplateResponse(request, "django_dblock/admin/monitor_live.html", context)
    context |= {
        **site.each_context(request),
        "is_nav_sidebar_enabled": False,  # the picture needs the room
        "title": _("Lock monitor"),
        "refresh": refresh,
        "refreshes": [
            (each, monitor_url(site, **kept, refresh=each)) for each in REFRESH
        ],
        "aliases": [(each, monitor_url(site, using=each)) for each in available_aliases()],
        "here": monitor_url(site, **kept, refresh=refresh),
        "start": monitor_url(site),
        "without_search": monitor_url(site, using=using, refresh=refresh),
    }
    return TemplateResponse(request, "django_dblock/admin/monitor.html", context)


def ask(
    request: HttpRequest, site: AdminSite, question: str, context: dict[str, Any]
) -> HttpResponse:
    """Show a question, with what it is about and the way back."""
    using = requested_alias(request)
    context = {
        **site.each_context(request),
        "is_nav_sidebar_enabled": False,
        "using": using,
        "back": monitor_url(site, using=using),
        **context,
    }
    return TemplateResponse(request, f"django_dblock/admin/{question}.html", context)


def need(request: HttpRequest, permission: str) -> None:
    """Go on if the user has the permission.

    Raises:
        PermissionDenied: they don't.
    """
    if not request.user.has_perm(permission):  # type: ignore[union-attr] # signed in
        raise PermissionDenied
