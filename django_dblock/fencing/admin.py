"""The leases in the admin: to look at and to search; to end one, the lock monitor asks first."""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.db import router
from django.db.models import DateTimeField, ExpressionWrapper, F, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from django_dblock.conf import conf
from django_dblock.models import FencedLock

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[FencedLock]
    _Rows = QuerySet[FencedLock]
else:
    _Admin, _Rows = admin.ModelAdmin, QuerySet

_HELD = Q(expires_at__gt=Now())
_MOST, _LONGEST_QUERY = 100, 3_500
"""Leases to end at once, and the bytes that ask for them: servers take some 4,000 in an address."""

_FREE = ExpressionWrapper(F("expires_at") + F("lock_delay"), DateTimeField())


class StateFilter(admin.SimpleListFilter):
    """By whether somebody has it."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:  # noqa: ARG002 - Django's
        """Offer the states."""
        return [("held", _("held")), ("delayed", _("delayed")), ("expired", _("expired"))]

    def queryset(self, request: HttpRequest, queryset: _Rows) -> _Rows:  # noqa: ARG002 - Django's
        """Leave those in the state that was chosen, by the server's clock."""
        if self.value() == "held":
            return queryset.filter(_HELD)
        over = queryset.exclude(_HELD).alias(free_at=_FREE)
        if self.value() == "delayed":
            return over.filter(free_at__gt=Now())
        if self.value() == "expired":
            return over.filter(free_at__lte=Now())
        return queryset


@admin.register(FencedLock)
class FencedLockAdmin(_Admin):
    """Read-only: a changed row is a broken lock. Who may release leases can end some from here."""

    list_display = (
        "name", "slot", "owner", "token", "acquired_at", "renewed_at", "expires_at", "grants",
    )  # fmt: skip
    fields = (
        "name", "slot", "owner", "token", "acquired_at", "renewed_at", "expires_at", "lock_delay",
        "grants", "metadata",
    )  # fmt: skip
    readonly_fields = fields
    list_filter = (StateFilter,)
    search_fields = ("name__contains", "owner__contains")
    search_help_text = _("A part of the name, or of the owner.")
    ordering = ("name", "slot")
    sortable_by: ClassVar[tuple[str, ...]] = ("name",)
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions = ("release_leases",)

    def get_queryset(self, request: HttpRequest) -> _Rows:
        """Read where leases are written, not from a replica or another alias."""
        rows: _Rows = super().get_queryset(request)
        return rows.using(conf.database or router.db_for_write(FencedLock))

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's
        """Refuse: leases are granted by the protocol."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Refuse, likewise."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Refuse: without its row a lease's token could repeat."""
        return False

    def has_release_permission(self, request: HttpRequest) -> bool:
        """Whether leases may be ended by force, on the page that asks; no site need have that."""
        needed = ("django_dblock.release_fencedlock", "django_dblock.view_lockmonitor")
        may = request.user.has_perms(needed)  # type: ignore[union-attr] # signed in
        return may and self._page_that_asks() is not None

    @admin.action(description=_("End by force …"), permissions=["release"])
    def release_leases(self, request: HttpRequest, queryset: _Rows) -> HttpResponse | None:
        """Go to the page that asks whether to end them."""
        leases = [("lease", f"{each.slot}:{each.name}") for each in queryset[: _MOST + 1]]
        query = urlencode(leases)
        if len(leases) > _MOST or len(query) > _LONGEST_QUERY:
            said = _("Nothing was done: choose at most %(most)s leases; fewer, if names are long.")
            messages.error(request, said % {"most": _MOST})
            return None
        return HttpResponseRedirect(f"{self._page_that_asks()}?{query}")

    def _page_that_asks(self) -> str | None:
        """Return its path; None where this site has no lock monitor."""
        try:
            return reverse(
                "admin:django_dblock_lockmonitor_release", current_app=self.admin_site.name
            )
        except NoReverseMatch:
            return None
