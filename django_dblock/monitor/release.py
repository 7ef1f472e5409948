"""End leases by force: asked, done to the grants that were shown, and written down."""

from typing import NamedTuple

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import BadRequest
from django.db import Error
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from django_dblock.exceptions import DblockError
from django_dblock.fencing.operate import force_release_grant
from django_dblock.inspect import FencedLease, fenced_leases
from django_dblock.monitor.written import log_release
from django_dblock.monitor.address import monitor_url, requested_alias
from django_dblock.monitor.views import MAY_RELEASE, ask, need
from django_dblock.monitor.words import one_line, visible

_PATIENCE = 5.0
"""Seconds that somebody who looks at a page waits for a guarded transaction to end."""


class Grant(NamedTuple):
    """A lease as it was shown: nothing that came after it is meant."""

    slot: int
    token: int
    name: str

    def __str__(self) -> str:
        return f"{self.slot}:{self.token}:{self.name}"

    @classmethod
    def read(cls, text: str) -> "Grant":
        """Read it back from a form.

        Raises:
            BadRequest: it is not from a form of ours.
        """
        try:
            slot, token, name = text.split(":", 2)
            return cls(int(slot), int(token), name)
        except ValueError as error:
            raise BadRequest("This is no lease.") from error


def release(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """Ask whether to end these leases (``?lease=SLOT:NAME``); a POST ends those that were shown.

    Raises:
        PermissionDenied: not for this user.
        BadRequest: the form is not ours.
    """
    need(request, MAY_RELEASE)
    using = requested_alias(request)
    back = HttpResponseRedirect(monitor_url(site, using=using))
    if request.method == "POST":
        for grant in [Grant.read(text) for text in request.POST.getlist("grant")]:
            _release(request, grant, using)
        return back
    wanted = set(request.GET.getlist("lease"))
    held = _held(request, using)
    if held is None:
        return back
    leases = [lease for lease in held if f"{lease.slot}:{lease.name}" in wanted]
    if not leases:
        messages.info(request, _("Nobody has this lease any more. Nothing was done."))
        return back
    rows = [(str(Grant(each.slot, each.token, each.name)), each) for each in leases]
    return ask(request, site, "release", {"title": _("End a lease by force"), "rows": rows})


def _held(request: HttpRequest, using: str | None) -> list[FencedLease] | None:
    """Return them; None if that could not be asked, and was told."""
    try:
        return [lease for lease in fenced_leases(using) if lease.state == "held"]
    except (Error, DblockError) as error:
        messages.error(request, one_line(str(error)))
        return None


def _release(request: HttpRequest, grant: Grant, using: str | None) -> None:
    said = {"name": visible(grant.name)}
    try:
        ended = force_release_grant(
            grant.name, grant.slot, grant.token, patience=_PATIENCE, using=using
        )
    except (Error, DblockError) as error:
        said["error"] = one_line(str(error))
        messages.error(
            request,
            _(
                "%(name)s was not ended: %(error)s. A guarded transaction of its holder that is "
                "open has to end first; then try again."
            )
            % said,
        )
        return
    if ended:
        log_release(request, grant.name, grant.slot, grant.token, using)
        said_so = _("%(name)s is released. Its holder is told at its next heartbeat or guard.")
        messages.success(request, said_so % said)
    else:
        said_so = _("%(name)s has ended or changed hands meanwhile, and was not touched.")
        messages.warning(request, said_so % said)
