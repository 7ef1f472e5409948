"""System checks of models with a version: mistakes that would let a write pass unnoticed.

The checks read the models, never a database.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks

from django_dblock.fencing.model import FencedModel, FencedQuerySet
from django_dblock.versioning.field import VersionField
from django_dblock.versioning.model import VersionedModel
from django_dblock.versioning.queryset import VersionedQuerySet

_BOTH = """Combine them, the fence first:
class {name}QuerySet(FencedQuerySet, VersionedQuerySet):
    pass
and in {name}:
    objects = VersionedManager.from_queryset({name}QuerySet)()"""


def check_models(
    app_configs: Sequence[AppConfig] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    """Find models whose versions would not be kept (E020 to E024)."""
    found: list[checks.CheckMessage] = []
    for config in apps.get_app_configs() if app_configs is None else app_configs:
        for model in config.get_models(include_auto_created=True):
            found += _guarded(model) if issubclass(model, VersionedModel) else _unguarded(model)
    return found


def check_admin(
    app_configs: Sequence[AppConfig] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    """Find models with a version in a plain ModelAdmin (W020)."""
    if not apps.is_installed("django.contrib.admin"):
        return []
    from django.contrib.admin.sites import all_sites

    return [
        checks.Warning(
            f"{model._meta.label} has a version, and {type(admin).__name__} in the site "
            f"{site.name!r} does not carry the version through its forms: the last of two "
            f"editors overwrites the first.",
            obj=type(admin),
            id="dblock.W020",
            hint="Base it on django_dblock.VersionedAdmin.",
        )
        for site in all_sites
        for model, admin in site._registry.items()
        if issubclass(model, VersionedModel)
        and not _carries_versions(type(admin))
        and (app_configs is None or model._meta.app_config in app_configs)
    ]


def _carries_versions(admin: type) -> bool:
    """Return whether a class is a VersionedAdmin, by its module: importing it needs the admin."""
    home = "django_dblock.versioning.web.admin"
    return any(each.__module__ == home for each in admin.__mro__)


def _is_both(queryset: type) -> bool:
    """Return whether a queryset is fenced and bumps: the fence comes first, then the bump."""
    line = queryset.__mro__
    both = {FencedQuerySet, VersionedQuerySet}
    return both.issubset(line) and line.index(FencedQuerySet) < line.index(VersionedQuerySet)


def _versions(model: Any) -> list[str]:
    return [field.name for field in model._meta.concrete_fields if isinstance(field, VersionField)]


def _is_history(model: Any) -> bool:
    """Return whether a model keeps copies of the rows of a VersionedModel.

    There the version is a fact about the past, and must not be compared or bumped. Such models
    are recognised by an attribute that their package sets, or by a copy of the same field.
    """
    tracked = getattr(model, "pgh_tracked_model", None)  # django-pghistory
    if tracked is None:
        tracked = getattr(model, "instance_type", None)  # django-simple-history
    if isinstance(tracked, type) and issubclass(tracked, VersionedModel):
        return True
    copied = {field.creation_counter for field in model._meta.local_concrete_fields}
    return any(
        other._version_field.creation_counter in copied
        for other in model._meta.apps.get_models(include_auto_created=True)
        if issubclass(other, VersionedModel)
    )


def _unversioned(model: Any) -> Iterator[checks.CheckMessage]:
    """Find names in ``unversioned`` that are no fields whose saves could do without a version."""
    names = model.unversioned
    if isinstance(names, str):
        wrong, names = [f"the string {names!r}, not a collection of names"], ()
    else:
        keys = {key.name for key in (*model._meta.pk_fields, model._meta.pk)}
        plain = {field.name for field in model._meta.concrete_fields if not field.generated}
        fields = plain - keys - {model._version_field.name}
        wrong = sorted(repr(name) for name in set(names) - fields)
    if wrong:
        yield checks.Error(
            f"{model._meta.label}.unversioned has {', '.join(wrong)}.",
            obj=model,
            id="dblock.E024",
            hint="Name plain fields of this model that may be saved without a comparison, such as "
            'unversioned = {"last_login"}; not the primary key, and not the version.',
        )


def _unguarded(model: Any) -> Iterator[checks.CheckMessage]:
    if _is_history(model):
        return
    for name in _versions(model):
        yield checks.Error(
            f"{model._meta.label}.{name} is a VersionField, but the model is no VersionedModel: "
            f"nothing compares it, and nothing bumps it.",
            obj=model,
            id="dblock.E020",
            hint="Base the model on django_dblock.VersionedModel; if it keeps the history of "
            "another model, make the field a BigIntegerField.",
        )


def _guarded(model: Any) -> Iterator[checks.CheckMessage]:
    names = _versions(model)
    if len(names) != 1:
        has = f"has several: {', '.join(names)}" if names else "has none"
        yield checks.Error(
            f"{model._meta.label} needs one VersionField, and {has}.",
            obj=model,
            id="dblock.E021",
            hint="For a version of another name, set version = None and add the other field. "
            "Two parents that both have a version can't be combined.",
        )
    if names:
        yield from _unversioned(model)
    managers = {"default": model._default_manager, "base": model._base_manager}
    fenced = issubclass(model, FencedModel)
    if fenced and not _is_both(type(model._default_manager.get_queryset())):
        del managers["default"]
        yield checks.Error(
            f"{model._meta.label} has a version and a fence, and the querysets of its default "
            f"manager, {model._default_manager.name}, don't keep both.",
            obj=model,
            id="dblock.E023",
            hint=_BOTH.format(name=model.__name__),
        )
    for kind, manager in managers.items():
        if not isinstance(manager.get_queryset(), VersionedQuerySet):
            yield checks.Error(
                f"The {kind} manager of {model._meta.label}, {manager.name}, makes querysets whose "
                f"update() would not bump the version.",
                obj=model,
                id="dblock.E022",
                hint="Base the manager on django_dblock.VersionedManager, and a queryset of your "
                "own on VersionedQuerySet. Where another parent's manager comes first, write "
                "objects = VersionedManager() into the model.",
            )
