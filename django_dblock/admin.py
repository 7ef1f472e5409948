"""What the admin has of ours: leases, the lock monitor, and, here, requests that happen once.

The requests are to look at, not to write.

What a person decides about one is done with ``manage.py dblock release --request`` or
:func:`django_dblock.resolve_idempotency_key`, which fence its worker off.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.core.paginator import Paginator
from django.db import router
from django.db.models import Case, Q, QuerySet, Value, When
from django.db.models.functions import Length, Now
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from django_dblock.conf import conf
from django_dblock.fencing import admin as leases  # noqa: F401 - registers by being imported
from django_dblock.idempotency.identity import masked
from django_dblock.models import IdempotencyKey
from django_dblock.monitor import admin as monitor  # noqa: F401 - likewise

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[IdempotencyKey]
    _Rows = QuerySet[IdempotencyKey]
else:
    _Admin, _Rows = admin.ModelAdmin, QuerySet

_MOST_COUNTED = 10_000

# By the server's clock, as the protocol sees them (django_dblock.sql.idempotency.READ).
_OVER = Q(locked_until=None) | Q(locked_until__lte=Now())
_KEPT = Q(expires_at=None) | Q(expires_at__gt=Now())
_STATES = {
    "done": Q(completed_at__isnull=False) & _KEPT,
    "leased": Q(completed_at=None, locked_until__gt=Now()),
    "expired": Q(expires_at__lte=Now()) & (Q(completed_at__isnull=False) | _OVER),
    "free": Q(completed_at=None, locked_until=None) & _KEPT,
    "abandoned": Q(completed_at=None, locked_until__lte=Now()) & _KEPT,
}
_WORDS = {
    "done": _("done"),
    "leased": _("leased"),
    "expired": _("expired"),
    "free": _("free"),
    "abandoned": _("abandoned"),
}


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts so many rows and no more: the table can have millions."""

    @cached_property
    def count(self) -> int:
        """Return how many there are to page through."""
        rows: Any = self.object_list
        return int(rows[:_MOST_COUNTED].count())


class StateFilter(admin.SimpleListFilter):
    """By what became of the request."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:  # noqa: ARG002 - Django's
        """Offer the states."""
        return list(_WORDS.items())

    def queryset(self, request: HttpRequest, queryset: _Rows) -> _Rows:  # noqa: ARG002 - Django's
        """Leave those in the state that was chosen."""
        chosen = self.value()
        return queryset.filter(_STATES[chosen]) if chosen in _STATES else queryset


class StatusFilter(admin.SimpleListFilter):
    """By the kind of answer; the table is not searched for which there are."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's
        """Offer the hundreds."""
        return [(str(hundred), f"{hundred}xx") for hundred in (2, 3, 4, 5)]

    def queryset(self, request: HttpRequest, queryset: _Rows) -> _Rows:  # noqa: ARG002 - Django's
        """Leave those of the hundred that was chosen."""
        chosen = self.value()
        if chosen not in ("2", "3", "4", "5"):
            return queryset
        first = 100 * int(chosen)
        return queryset.filter(status_code__range=(first, first + 99))


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(_Admin):
    """Read-only: who may view the model sees them; nobody adds, changes or deletes one.

    The stored body and the results of steps may be private, so their size and their names are
    shown; the whole key on the page of one request only.
    """

    list_display = (
        "id", "scope", "masked_key", "method", "path", "status_code", "state", "created_at",
        "completed_at", "expires_at",
    )  # fmt: skip
    fields = (
        "id", "scope", "key", "method", "path", "state", "status_code", "headers", "body_kind",
        "body_size", "token", "owner", "locked_until", "step_names", "created_at", "completed_at",
        "expires_at",
    )  # fmt: skip
    readonly_fields = fields
    list_filter = (StateFilter, StatusFilter)
    search_fields = ("scope__contains", "path__contains", "key__exact")
    search_help_text = _("A part of the scope or of the path, or the whole key.")
    ordering = ("-id",)
    sortable_by: ClassVar[tuple[str, ...]] = ("id", "expires_at")
    list_per_page = 100
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator

    def get_queryset(self, request: HttpRequest) -> _Rows:
        """Read what is shown, and no body, where requests are written."""
        states = [When(condition, then=Value(state)) for state, condition in _STATES.items()]
        rows: _Rows = super().get_queryset(request)
        rows = rows.using(conf.database or router.db_for_write(IdempotencyKey))
        return rows.defer("body").annotate(
            state_now=Case(*states, default=Value("")), stored_size=Length("body")
        )

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's
        """Refuse: what a row means, the protocol says."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Refuse, likewise."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Refuse: a request whose row is gone would have its effects again."""
        return False

    @admin.display(description=_("key"))
    def masked_key(self, row: IdempotencyKey) -> str:
        """Show the beginning of the key."""
        return masked(row.key)

    @admin.display(description=_("state"))
    def state(self, row: Any) -> str:
        """Show the state by the server's clock."""
        return str(_WORDS.get(row.state_now, ""))

    @admin.display(description=_("body"))
    def body_size(self, row: Any) -> str:
        """Show how large the stored body is."""
        if row.stored_size is None:
            return str(_("none"))
        return str(_("%(size)s bytes") % {"size": f"{row.stored_size:,}"})

    @admin.display(description=_("steps"))
    def step_names(self, row: IdempotencyKey) -> str:
        """Show which steps are recorded, not what came of them."""
        return ", ".join(sorted(row.steps)) or str(_("none"))
