"""The monitor's place in the admin: in its index and its menu, under its permissions."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path

from django_dblock.models import LockMonitor

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[LockMonitor]
else:
    _Admin = admin.ModelAdmin


@admin.register(LockMonitor)
class LockMonitorAdmin(_Admin):
    """The admin of the lock monitor; ending something needs permissions of its own."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's
        """Return False: locks are taken elsewhere."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Return False: the monitor changes no rows."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's
        """Return False: the monitor changes no rows."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """Put three pages where other models have their lists and forms."""
        # The pages import most of the package: only a process that needs URLs pays for them.
        from django_dblock.monitor import views

        return [
            path("", self._page(views.show), name=views.url_name(views.MONITOR)),
            path("release/", self._page(views.release), name=views.url_name(views.RELEASE)),
            path("terminate/", self._page(views.terminate), name=views.url_name(views.TERMINATE)),
        ]

    def _page(self, view: Callable[[HttpRequest, admin.AdminSite], HttpResponse]) -> Any:
        """Return the view for users with the view permission, outside ATOMIC_REQUESTS.

        In an open transaction a lease can't be ended, and what the server refuses would end it.
        """

        def allowed(request: HttpRequest) -> HttpResponse:
            if not self.has_view_permission(request):
                raise PermissionDenied
            return view(request, self.admin_site)

        page: Any = self.admin_site.admin_view(allowed)
        for alias in connections:
            page = transaction.non_atomic_requests(using=alias)(page)
        return page
