"""Where the pages of the monitor are, and what their addresses ask for."""

from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import BadRequest
from django.db import connections
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

MONITOR = "changelist"
RELEASE, TERMINATE = "release", "terminate"
REFRESH = (0, 2, 5, 30)
"""Every how many seconds; 0 is never."""

_DEFAULT_REFRESH = 5
_LONGEST_SEARCH = 200


def url_name(page: str) -> str:
    """Return the name of a page's URL; the first is the one that the admin's list links to."""
    return f"django_dblock_lockmonitor_{page}"


def monitor_url(site: AdminSite, page: str = MONITOR, **parameters: Any) -> str:
    """Return the address of a page, without parameters that are None or empty."""
    path = reverse(f"admin:{url_name(page)}", current_app=site.name)
    given = {name: value for name, value in parameters.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def available_aliases() -> list[str]:
    """Return the databases that are PostgreSQL."""
    return [requested_alias for requested_alias in connections if connections[requested_alias].vendor == "postgresql"]


def requested_alias(request: HttpRequest) -> str | None:
    """Return the database that is asked for; None leaves it to the settings and the router.

    Raises:
        BadRequest: there is no such.
    """
    given = request.POST.get("using") or request.GET.get("using")
    if given and given not in available_aliases():
        raise BadRequest("There is no such database.")
    return given or None


def requested_search(request: HttpRequest) -> str:
    """Return what is looked for."""
    return request.GET.get("q", "").strip()[:_LONGEST_SEARCH]


def requested_refresh(request: HttpRequest) -> int:
    """Return every how many seconds the page shall be new; 0 for never."""
    given = request.GET.get("refresh", "")
    return int(given) if given in map(str, REFRESH) else _DEFAULT_REFRESH
