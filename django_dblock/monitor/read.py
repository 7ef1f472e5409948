"""Ask the database for what the page shows; what it refuses is told, not raised."""

from collections.abc import Callable
from typing import Any

from django.db import Error
from django.utils import timezone
from django.utils.translation import gettext as _

from django_dblock.exceptions import UnsupportedDatabase
from django_dblock.inspect import advisory_locks, fenced_leases, unfinished_requests
from django_dblock.monitor import page
from django_dblock.monitor.page import Page
from django_dblock.monitor.words import one_line

_UNDEFINED_TABLE = "42P01"


def read(using: str | None, search: str = "") -> tuple[Page, list[str]]:
    """Return the page of one alias, and in words what could not be read. Three statements.

    Not to be called in a transaction: what the server refuses would end it.
    """
    told: list[str] = []
    locks = _asked(lambda: advisory_locks(using), _("Advisory locks"), told)
    leases = _asked(lambda: fenced_leases(using), _("Leases"), told)
    requests = _asked(lambda: unfinished_requests(using), _("Requests"), told)
    return page.make(locks, leases, requests, at=timezone.now(), search=search), told


def _asked(ask: Callable[[], list[Any]], what: str, told: list[str]) -> list[Any]:
    try:
        return ask()
    except (Error, UnsupportedDatabase) as error:
        if getattr(error.__cause__, "sqlstate", None) == _UNDEFINED_TABLE:
            reason = _("the table is not in this database. Run 'manage.py migrate' if it should be")
        else:
            reason = one_line(str(error))
        told.append(_("%(what)s can't be shown: %(reason)s.") % {"what": what, "reason": reason})
        return []
