"""System checks of models: each planted fault is found, and sound models are left alone."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.core import checks
from django.db import models
from django.test.utils import isolate_apps

from django_dblock import (
    FencedModel,
    FencedQuerySet,
    VersionedManager,
    VersionedModel,
    VersionedQuerySet,
    VersionField,
)
from django_dblock.checks.models import check_admin, check_models
from tests.app.models import Plain, Product, ProductProxy
from tests.helpers.registered import tags_of


class App:
    app_label = "app"


def ids(found):
    return [message.id for message in found]


def found(*classes):
    [config] = {each._meta.apps.get_app_config("app") for each in classes}
    return check_models([config])


def test_test_models_have_no_message():
    assert check_models() == []
    assert check_models([apps.get_app_config("auth")]) == []


def test_checks_are_registered_by_the_app():
    assert tags_of(check_models) == (checks.Tags.models,)
    assert tags_of(check_admin) == (checks.Tags.admin,)


@isolate_apps("tests.app")
def test_e020_version_field_on_a_plain_model():
    class Bare(models.Model):
        revision = VersionField()

        class Meta(App):
            pass

    [error] = found(Bare)
    assert (error.id, error.obj) == ("dblock.E020", Bare)
    assert "app.Bare.revision" in error.msg
    assert "VersionedModel" in error.hint


@isolate_apps("tests.app")
def test_e021_several_versions_or_none():
    class Two(VersionedModel):
        revision = VersionField()

        class Meta(App):
            pass

    class Nothing(VersionedModel):
        version = None

        class Meta(App):
            pass

    class Renamed(VersionedModel):
        version = None
        revision = VersionField()

        class Meta(App):
            pass

    class Abstract(VersionedModel):
        version = None

        class Meta(App):
            abstract = True

    errors = found(Two, Nothing, Renamed)
    assert ids(errors) == ["dblock.E021"] * 2
    assert "several: version, revision" in errors[0].msg or "revision, version" in errors[0].msg
    assert errors[1].obj is Nothing
    assert "has none" in errors[1].msg


@isolate_apps("tests.app")
def test_e022_manager_that_does_not_bump():
    class Parent(models.Model):
        class Meta(App):
            pass

    class Unaware(VersionedModel):
        objects = models.Manager()

        class Meta(App):
            pass

    class Inherited(Parent, VersionedModel):
        class Meta(App):
            pass

    class Base(VersionedModel):
        plain = models.Manager()
        objects = VersionedManager()

        class Meta(App):
            base_manager_name = "plain"
            default_manager_name = "objects"

    class OwnQuerySet(VersionedQuerySet):
        pass

    class OwnManager(models.Manager):
        def get_queryset(self):
            return OwnQuerySet(self.model, using=self._db)

    class Own(VersionedModel):
        objects = OwnManager()

        class Meta(App):
            pass

    errors = found(Unaware, Inherited, Base, Own)
    assert set(ids(errors)) == {"dblock.E022"}
    assert [error.obj for error in errors] == [Unaware, Inherited, Base]
    assert "default manager of app.Unaware, objects" in errors[0].msg
    assert "base manager of app.Base, plain" in errors[2].msg


@isolate_apps("tests.app")
def test_e023_manager_without_version_or_fence():
    class VersionFirst(VersionedModel, FencedModel):
        class Meta(App):
            pass

    class FenceFirst(FencedModel, VersionedModel):
        class Meta(App):
            pass

    class WrongWayRound(VersionedQuerySet, FencedQuerySet):
        pass

    class Reversed(VersionedModel, FencedModel):
        objects = VersionedManager.from_queryset(WrongWayRound)()

        class Meta(App):
            pass

    class Right(FencedQuerySet, VersionedQuerySet):
        pass

    class Sound(VersionedModel, FencedModel):
        objects = VersionedManager.from_queryset(Right)()

        class Meta(App):
            pass

    errors = found(VersionFirst, FenceFirst, Reversed, Sound)
    assert set(ids(errors)) == {"dblock.E023"}
    assert [error.obj for error in errors] == [VersionFirst, FenceFirst, Reversed]
    assert "app.VersionFirst" in errors[0].msg
    assert "class VersionFirstQuerySet(FencedQuerySet, VersionedQuerySet):" in errors[0].hint
    assert "VersionedManager.from_queryset(VersionFirstQuerySet)()" in errors[0].hint


@pytest.fixture
def site():
    site = admin.AdminSite(name="one of ours")
    yield site
    admin.sites.all_sites.discard(site)


def planted(site):
    return [warning for warning in check_admin() if repr(site.name) in warning.msg]


def test_w020_plain_admin_of_a_versioned_model(site):
    site.register([Product, ProductProxy, Plain])
    warnings = planted(site)
    assert ids(warnings) == ["dblock.W020"] * 2
    assert warnings[0].obj is admin.ModelAdmin
    assert "app.Product" in warnings[0].msg
    assert check_admin([apps.get_app_config("auth")]) == []


def test_versioned_admin_has_no_warning(site):
    class Carrying(admin.ModelAdmin):
        __module__ = "django_dblock.versioning.web.admin"

    class Mine(Carrying):
        pass

    site.register(Product, Mine)
    assert planted(site) == []


def test_without_the_admin_no_check_runs(settings, site):
    site.register(Product)
    settings.INSTALLED_APPS = ["tests.app"]
    assert check_admin() == []
