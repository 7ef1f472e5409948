"""For the templates of the lock monitor."""

from datetime import datetime

from django import template

from django_dblock.monitor import formatting
from django_dblock.monitor.graph_svg import doing

register = template.Library()

register.filter("visible", formatting.visible)
register.filter("doing", doing)
register.filter("role_name", formatting.role_name)
register.filter("numbered_role", formatting.numbered_role)


@register.filter
def lasting(seconds: float | None) -> str:
    """Say how long; nothing where that isn't known."""
    return "" if seconds is None else formatting.lasting(seconds)


@register.filter
def exactly(moment: datetime) -> str:
    """Return the moment to the microsecond, so that it can be compared."""
    return moment.isoformat()
