"""For the package's own admin template."""

from django import template
from django.utils.safestring import SafeString, mark_safe

register = template.Library()


@register.filter
def within_form(page: SafeString, fields: SafeString) -> SafeString:
    """Put hidden fields before the end of the only form in a piece of a page."""
    before, end, after = page.rpartition("</form>")
    # Both come from templates, which have escaped what is to be escaped.
    return mark_safe(f"{before}{fields}{end}{after}") if end else page  # noqa: S308
