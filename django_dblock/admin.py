"""The admin: leases, latches, idempotency keys and the lock monitor, all read-only.

An operator ends a lease on the lock monitor's page, which asks first. An operator resolves an
unfinished request with ``manage.py dblock release --request`` or
:func:`django_dblock.resolve_idempotency_key`, which fence off the request's worker.

The tables can hold millions of rows, so each page reads a bounded number of them: lists are sorted
by indexes only, counted up to a limit, and searched through indexes and the newest rows.
"""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import router
from django.db.models import (
    Case,
    DateTimeField,
    DurationField,
    ExpressionWrapper,
    F,
    Model,
    Q,
    QuerySet,
    Value,
    When,
)
from django.db.models.functions import Length, Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html_join
from django.utils.http import urlencode
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy as _

from django_dblock.conf import conf
from django_dblock.models import MAY_SEE_OTHERS, FencedLock, IdempotencyKey, LatchPart
from django_dblock.monitor import admin as monitor  # noqa: F401 - registers by being imported
from django_dblock.monitor.formatting import lasting, short, visible

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
    _KeyRows = QuerySet[IdempotencyKey]
    _LeaseRows = QuerySet[FencedLock]
else:
    _ModelAdmin = admin.ModelAdmin
    _KeyRows = _LeaseRows = QuerySet

MOST_COUNTED = 10_000
"""Rows that a list counts, and pages through, at most."""

NEWEST = 100_000
"""Rows that a search reads without an index: those with the highest ids."""

MOST_FOUND = 1_000
"""Rows that a search finds at most."""

_LONGEST_CELL = 24

_MOST_RELEASED, _LONGEST_QUERY = 100, 3_500
"""Leases to end at once, and the bytes that ask for them: servers take some 4,000 in an address."""


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator that counts up to a limit."""

    @cached_property
    def count(self) -> int:
        """Return the number of rows to page through, up to the limit."""
        rows: Any = self.object_list
        return int(rows[:MOST_COUNTED].count())


class BoundedChangeList(ChangeList):
    """A change list that sorts by the columns of ``sortable_by`` only.

    Django hides the links of other columns, but an address with ``?o=3`` sorts by any of them,
    which reads the whole table.
    """

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return the field to sort by; None if no index has it."""
        sortable = field_name in (self.sortable_by or ())
        return super().get_ordering_field(field_name) if sortable else None


class ReadOnlyAdmin(_ModelAdmin):
    """A read-only admin that reads a bounded number of rows, where the model is written.

    If the project has namespaces, users without the permission ``view_other_namespaces`` see the
    rows of the current one only.
    """

    if TYPE_CHECKING:  # what each of the admins defines

        def own_rows(self, namespace: str) -> Q:
            """Return the condition for the rows of a namespace."""

        def indexed_matches(self, rows: QuerySet[Any], words: list[str]) -> list[QuerySet[Any]]:
            """Return the matches that an index finds among all rows."""

        def matches(self, word: str) -> Q:
            """Return the condition for a word among the newest rows."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    list_per_page = 100

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:  # noqa: ARG002 - Django's
        """Return the class of the list."""
        return BoundedChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Read from the alias where the model is written, not from a replica."""
        rows = super().get_queryset(request)
        rows = rows.using(conf.database or router.db_for_write(self.model))
        if not conf.has_namespaces or request.user.has_perm(MAY_SEE_OTHERS):  # type: ignore[union-attr]
            return rows
        return rows.filter(self.own_rows(conf.namespace))

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:  # noqa: ARG002 - Django's
        """Return whether a condition in the address is a filter; others may have no index."""
        filters: Any = self.list_filter
        return lookup in {each.parameter_name for each in filters}

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002 - Django's
        queryset: QuerySet[Any],
        search_term: str,
    ) -> tuple[QuerySet[Any], bool]:
        """Return the rows that match, by indexes, or among the newest rows."""
        words = search_term.split()
        if not words:
            return queryset, False
        table: QuerySet[Any] = self.model._default_manager.using(queryset.db)  # noqa: SLF001 - Django's documented API
        # With the page's filters and namespace, or other rows would use up MOST_FOUND.
        everything = queryset.order_by()
        found = self.indexed_matches(everything, words)
        recent = everything.filter(pk__gt=newest(table))
        for word in words:
            recent = recent.filter(self.matches(word))
        found.append(recent.order_by("-pk"))
        pks = {pk for rows in found for pk in rows.values_list("pk", flat=True)[:MOST_FOUND]}
        return queryset.filter(pk__in=pks), False

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's
        """Return False: only the protocol creates rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Return False: a changed row is a broken lock."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Return False: without the row a token could repeat, or a request would run again."""
        return False


def newest(rows: QuerySet[Any]) -> Any:
    """Return the id above which the newest rows are, from the primary key's index."""
    last = rows.order_by("-pk").values_list("pk", flat=True).first()
    return max((last or 0) - NEWEST, 0)


class StateFilter(admin.SimpleListFilter):
    """A filter by state, by the server's clock."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:  # noqa: ARG002 - Django's
        """Return the states."""
        return [(state, STATE_NAMES[state]) for state in model_admin.states]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - Django's
        """Return the rows in the chosen state; all rows if no state is chosen."""
        states: dict[str, Q] = STATES[queryset.model]
        chosen = self.value()
        return queryset.filter(states[chosen]) if chosen in states else queryset


class StatusFilter(admin.SimpleListFilter):
    """A filter by the class of the response's status, among the newest requests."""

    title = _("status of the newest requests")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's
        """Return all classes, without searching the table for those that occur."""
        return [(str(hundred), f"{hundred}xx") for hundred in (2, 3, 4, 5)]

    def queryset(self, request: HttpRequest, queryset: _KeyRows) -> _KeyRows:  # noqa: ARG002 - Django's
        """Return the rows of the chosen class; all rows if no class is chosen."""
        chosen = self.value()
        if chosen not in ("2", "3", "4", "5"):
            return queryset
        first = 100 * int(chosen)
        recent = queryset.filter(pk__gt=newest(IdempotencyKey.objects.using(queryset.db)))
        return recent.filter(status_code__range=(first, first + 99))


# The states by the server's clock, as the protocols see them.
_HELD = Q(expires_at__gt=Now())
_FREE_AT = ExpressionWrapper(F("expires_at") + F("lock_delay"), DateTimeField())
_LEASE_OVER = Q(locked_until=None) | Q(locked_until__lte=Now())
_KEPT = Q(expires_at=None) | Q(expires_at__gt=Now())

STATES: dict[type[Model], dict[str, Q]] = {
    FencedLock: {
        "held": _HELD,
        "delayed": ~_HELD & Q(free_at__gt=Now()),
        "expired": Q(free_at__lte=Now()),
    },
    IdempotencyKey: {
        "done": Q(completed_at__isnull=False) & _KEPT,
        "leased": Q(completed_at=None, locked_until__gt=Now()),
        "expired": Q(expires_at__lte=Now()) & (Q(completed_at__isnull=False) | _LEASE_OVER),
        "free": Q(completed_at=None, locked_until=None) & _KEPT,
        "abandoned": Q(completed_at=None, locked_until__lte=Now()) & _KEPT,
    },
}

STATE_NAMES = {
    "held": _("held"),
    "delayed": _("delayed"),
    "done": _("done"),
    "leased": _("leased"),
    "expired": _("expired"),
    "free": _("free"),
    "abandoned": _("abandoned"),
}


def _state(model: type[Model]) -> Case:
    states = [When(condition, then=Value(state)) for state, condition in STATES[model].items()]
    return Case(*states, default=Value(""))


def _until(field: str) -> Any:
    return ExpressionWrapper(F(field) - Now(), output_field=DurationField())


def _pieces(text: str) -> list[tuple[str]]:
    return [(piece,) for piece in re.split(r"(?<=:)", text)]


def _seconds(duration: timedelta | None) -> str:
    """Return a duration in words, without its sign, that is not broken at its spaces."""
    if duration is None:
        return ""
    return lasting(abs(duration.total_seconds())).replace(" ", "\N{NO-BREAK SPACE}")


@admin.register(FencedLock)
class FencedLockAdmin(ReadOnlyAdmin):
    """The leases; a user with the permission can release some of them from here."""

    list_display = ("name_and_slot", "state", "time_left", "short_owner", "age")
    fields = (
        "name", "slot", "state", "time_left", "owner", "token", "acquired_at", "renewed_at",
        "expires_at", "lock_delay", "grants", "metadata",
    )  # fmt: skip
    readonly_fields = fields
    list_filter: ClassVar[tuple[Any, ...]] = (StateFilter,)
    states = tuple(STATES[FencedLock])
    search_fields = ("name", "owner")
    search_help_text = _(
        "The beginning of any name; or any part of a name or owner among the newest 100,000 leases."
    )
    ordering = ("name", "slot")
    sortable_by: ClassVar[tuple[str, ...]] = ("name_and_slot",)
    actions = ("release_leases",)

    def get_queryset(self, request: HttpRequest) -> _LeaseRows:
        """Add the state and the time left by the server's clock."""
        rows: _LeaseRows = super().get_queryset(request).annotate(free_at=_FREE_AT)
        return rows.annotate(
            state_now=_state(FencedLock),
            left=_until("expires_at"),
            free_in=_until("free_at"),
            aged=_until("acquired_at"),
        )

    def indexed_matches(self, rows: QuerySet[Any], words: list[str]) -> list[QuerySet[Any]]:
        """Return the leases whose name begins with the first word and has the others."""
        found = rows.filter(name__startswith=words[0]).order_by("name")
        for word in words[1:]:
            found = found.filter(name__contains=word)
        return [found]

    def matches(self, word: str) -> Q:
        """Return the condition that the name or the owner has the word."""
        return Q(name__contains=word) | Q(owner__contains=word)

    def own_rows(self, namespace: str) -> Q:
        """Return the condition for the leases of a namespace, by their names."""
        return Q(name__startswith=f"{namespace}::") if namespace else ~Q(name__contains="::")

    @admin.display(description=_("lease"), ordering="name")
    def name_and_slot(self, row: FencedLock) -> str:
        """Show the name and what the lease is to its holder, such as ``openai (permit 2)``."""
        from django_dblock.fencing.lease_name import title_of  # for a page, not at start-up

        name = title_of(row.name, row.slot)
        # Long names break at their colons instead of widening the table.
        return format_html_join(mark_safe("<wbr>"), "{}", _pieces(visible(name)))

    @admin.display(description=_("state"))
    def state(self, row: Any) -> str:
        """Show the state by the server's clock."""
        return str(STATE_NAMES[row.state_now])

    @admin.display(description=_("time left"))
    def time_left(self, row: Any) -> str:
        """Show the time until the lease expires, or can be granted again, or since then."""
        if row.state_now == "held":
            return str(_("%(time)s left") % {"time": _seconds(row.left)})
        if row.state_now == "delayed":
            return str(_("free in %(time)s") % {"time": _seconds(row.free_in)})
        if not row.grants:
            return str(_("never granted"))
        return str(_("ended %(time)s ago") % {"time": _seconds(row.left)})

    @admin.display(description=_("granted"))
    def age(self, row: Any) -> str:
        """Show the time since the lease was granted."""
        if not row.grants:
            return "-"
        return str(_("%(time)s ago") % {"time": _seconds(row.aged)})

    @admin.display(description=_("owner"))
    def short_owner(self, row: FencedLock) -> str:
        """Show the owner, its middle left out if it is long."""
        return short(visible(row.owner), _LONGEST_CELL)

    def has_release_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may release leases, and this site has the confirmation page."""
        needed = ("django_dblock.release_fencedlock", "django_dblock.view_lockmonitor")
        may = request.user.has_perms(needed)  # type: ignore[union-attr] # signed in
        return may and self._release_url() is not None

    @admin.action(description=_("Release by force …"), permissions=["release"])
    def release_leases(self, request: HttpRequest, queryset: _LeaseRows) -> HttpResponse | None:
        """Redirect to the page that asks whether to release the leases."""
        rows = queryset[: _MOST_RELEASED + 1]
        leases = [("lease", f"{lease.slot}:{lease.name}") for lease in rows]
        query = urlencode(leases)
        if len(leases) > _MOST_RELEASED or len(query) > _LONGEST_QUERY:
            text = _("Nothing was done: choose at most %(most)s leases; fewer, if names are long.")
            messages.error(request, text % {"most": _MOST_RELEASED})
            return None
        return HttpResponseRedirect(f"{self._release_url()}?{query}")

    def _release_url(self) -> str | None:
        """Return the path of the confirmation page; None if this site has no lock monitor."""
        try:
            return reverse(
                "admin:django_dblock_lockmonitor_release", current_app=self.admin_site.name
            )
        except NoReverseMatch:
            return None


@admin.register(LatchPart)
class LatchPartAdmin(ReadOnlyAdmin):
    """The parts of latches that are done. ``dblock purge`` removes whole latches."""

    list_display = ("latch", "part", "age")
    fields = ("latch", "part", "done_at")
    readonly_fields = fields
    search_fields = ("latch", "part")
    search_help_text = _(
        "The beginning of any latch's name; or any part of a name among the newest 100,000 parts."
    )
    ordering = ("latch", "part")
    sortable_by: ClassVar[tuple[str, ...]] = ("latch",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[LatchPart]:
        """Add the time since the part was done, by the server's clock."""
        return super().get_queryset(request).annotate(aged=_until("done_at"))

    def indexed_matches(self, rows: QuerySet[Any], words: list[str]) -> list[QuerySet[Any]]:
        """Return the parts of latches whose name begins with the first word and has the others."""
        found = rows.filter(latch__startswith=words[0]).order_by("latch")
        for word in words[1:]:
            found = found.filter(latch__contains=word)
        return [found]

    def matches(self, word: str) -> Q:
        """Return the condition that the latch or the part has the word."""
        return Q(latch__contains=word) | Q(part__contains=word)

    def own_rows(self, namespace: str) -> Q:
        """Return the condition for the latches of a namespace, by their names."""
        return Q(latch__startswith=f"{namespace}::") if namespace else ~Q(latch__contains="::")

    @admin.display(description=_("done"))
    def age(self, row: Any) -> str:
        """Show the time since the part was done."""
        return str(_("%(time)s ago") % {"time": _seconds(row.aged)})


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """The requests with an idempotency key.

    The stored body and the results of steps may be private, so only their size and their names are
    shown; the whole key is on the page of one request only.
    """

    list_display = (
        "id", "state", "time_left", "masked_key", "request", "status", "short_scope",
    )  # fmt: skip
    fields = (
        "id", "scope", "key", "method", "path", "state", "time_left", "status_code", "headers",
        "body_kind", "body_size", "token", "owner", "locked_until", "step_names", "created_at",
        "completed_at", "expires_at",
    )  # fmt: skip
    readonly_fields = fields
    list_filter = (StateFilter, StatusFilter)
    states = tuple(STATES[IdempotencyKey])
    search_fields = ("scope", "path", "key")
    search_help_text = _(
        "A part of the scope or path, or the key, of the newest 100,000 requests; or a whole "
        "scope, alone or with the key, of all requests."
    )
    ordering = ("-id",)
    sortable_by: ClassVar[tuple[str, ...]] = ("id",)

    def get_queryset(self, request: HttpRequest) -> _KeyRows:
        """Add the state, the time left and the size of the body; don't read the body."""
        rows: _KeyRows = super().get_queryset(request)
        return rows.defer("body").annotate(
            state_now=_state(IdempotencyKey),
            stored_size=Length("body"),
            left=_until("locked_until"),
            kept_for=_until("expires_at"),
        )

    def indexed_matches(self, rows: QuerySet[Any], words: list[str]) -> list[QuerySet[Any]]:
        """Return the requests of a scope, and the one with a scope and a key.

        Only of the current namespace, with which the index begins. Requests of other namespaces are
        found among the newest rows.
        """
        rows = rows.filter(namespace=conf.namespace)
        return [
            rows.filter(scope=" ".join(words)).order_by("namespace", "scope", "key"),
            rows.filter(scope__in=words, key__in=words).order_by(),
        ]

    def matches(self, word: str) -> Q:
        """Return the condition that scope or path have the word, or that the word is the key."""
        return Q(scope__contains=word) | Q(path__contains=word) | Q(key=word)

    def own_rows(self, namespace: str) -> Q:
        """Return the condition for the requests of a namespace."""
        return Q(namespace=namespace)

    @admin.display(description=_("key"))
    def masked_key(self, row: IdempotencyKey) -> str:
        """Show the beginning of the key; of a ``once_per`` job its name and period."""
        from django_dblock.idempotency.identity import shown_key  # for a page, not at start-up

        return visible(shown_key(row.scope, row.key))

    @admin.display(description=_("request"))
    def request(self, row: IdempotencyKey) -> str:
        """Show the method and the path, the path's middle left out if it is long."""
        return short(visible(f"{row.method} {row.path}".strip() or "run_once"), _LONGEST_CELL)

    @admin.display(description=_("scope"))
    def short_scope(self, row: IdempotencyKey) -> str:
        """Show the scope, its middle left out if it is long."""
        return short(visible(row.scope), _LONGEST_CELL)

    @admin.display(description=_("state"))
    def state(self, row: Any) -> str:
        """Show the state by the server's clock."""
        return str(STATE_NAMES.get(row.state_now, ""))

    @admin.display(description=_("time left"))
    def time_left(self, row: Any) -> str:
        """Show how long the row is leased or kept, or since when the request has no worker."""
        if row.state_now == "leased":
            return str(_("%(time)s left") % {"time": _seconds(row.left)})
        if row.state_now == "abandoned":
            return str(_("%(time)s ago") % {"time": _seconds(row.left)})
        if row.kept_for is None:
            return str(_("kept"))
        if row.state_now == "expired":
            return str(_("%(time)s ago") % {"time": _seconds(row.kept_for)})
        return str(_("kept for %(time)s") % {"time": _seconds(row.kept_for)})

    @admin.display(description=_("status"), empty_value="-")
    def status(self, row: IdempotencyKey) -> int | None:
        """Show the status of the response."""
        return row.status_code

    @admin.display(description=_("body"))
    def body_size(self, row: Any) -> str:
        """Show the size of the stored body."""
        if row.stored_size is None:
            return str(_("none"))
        return str(_("%(size)s bytes") % {"size": f"{row.stored_size:,}"})

    @admin.display(description=_("steps"))
    def step_names(self, row: IdempotencyKey) -> str:
        """Show which steps are recorded, not their results."""
        return ", ".join(sorted(row.steps)) or str(_("none"))
