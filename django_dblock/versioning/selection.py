"""The versions of many rows that a page has shown together."""

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_dblock.exceptions import StaleObjects
from django_dblock.signals import stale_object
from django_dblock.versioning import token
from django_dblock.versioning.model import VersionedModel

VERSIONS = "version_tokens"


def hidden_versions(model: type[VersionedModel], shown: Iterable[VersionedModel]) -> SafeString:
    """Return a hidden input with the versions of these objects."""
    name = model._version_field.attname
    versions = {each.pk: getattr(each, name) for each in shown}
    signed = token.dump_many(model._meta.label, versions)
    return format_html('<input type="hidden" name="{}" value="{}">', VERSIONS, signed)


def lock_seen(queryset: QuerySet[Any], sent: object) -> None:
    """Lock the rows of a queryset, in a transaction, if they have the versions that were sent.

    One statement.

    Raises:
        ValidationError: nothing readable was sent.
        StaleObjects: some have another version, or were not on the page.
    """
    model = queryset.model
    seen = token.load_many(model._meta.label, sent)
    field = model._version_field
    rows = field.model._base_manager.using(queryset.db).filter(pk__in=queryset.values("pk"))
    found = rows.order_by("pk").select_for_update().values_list("pk", field.attname)
    stale = [pk for pk, version in found if seen.get(str(pk)) != version]
    if stale:
        error = StaleObjects(model=model._meta.label, pks=stale, using=queryset.db)
        stale_object.send_robust(model, error=error)
        raise error
