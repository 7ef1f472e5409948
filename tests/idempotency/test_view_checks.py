"""The check of views: a project that identifies no client is reported before the first request."""

import subprocess
import sys

import pytest
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.core import checks
from django.test.utils import modify_settings

from django_dblock import idempotent
from django_dblock.checks import views as home
from django_dblock.checks.views import check_views
from tests.helpers.registered import tags_of

OURS = "django.contrib.auth.middleware.AuthenticationMiddleware"
pytestmark = pytest.mark.urls("tests.app.idempotent_matrix")


class Subclass(AuthenticationMiddleware):
    """A project's own."""


def without_users(settings):
    settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if each != OURS]


def test_correct_project_has_no_message():
    assert check_views() == []


def test_checks_are_registered_by_the_app():
    assert tags_of(check_views) == (checks.Tags.urls,)


def test_w030_no_middleware_sets_the_user(settings):
    without_users(settings)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django_dblock.middleware.ConflictMiddleware"]
    found = {message.obj: message for message in check_views()}
    warning = found["tests.app.idempotent_matrix.of_anybody"]
    assert warning.id == "dblock.W030"
    assert "without scope=" in warning.msg
    assert "tests.app.idempotent_matrix.function" not in found, "it has a scope"


def test_w030_names_a_method_decorator(settings):
    """Each by its class and method; not as the dummy on which Django tries the decorator."""
    without_users(settings)
    found = {message.obj for message in check_views()}
    assert not [name for name in found if "dummy" in name]
    here = "tests.app.idempotent_matrix"
    assert {f"{here}.OfAnybody.post", f"{here}.OfAnybodyInherited.post"} <= found
    assert {f"{here}.ApiOnMethod.post", f"{here}.ApiByName.post"} <= found
    assert not {f"{here}.OnMethod.post", f"{here}.ByName.post"} & found, "they have a scope"


def test_w030_no_auth_app(settings, monkeypatch):
    monkeypatch.setattr(home.apps, "is_installed", lambda name: False)
    assert "dblock.W030" in {message.id for message in check_views()}


def test_subclass_of_the_middleware_sets_the_user(settings):
    without_users(settings)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.Subclass"]
    assert check_views() == []


def test_function_middleware_sets_no_user(settings):
    without_users(settings)
    settings.MIDDLEWARE = [f"{__name__}.without_users"]
    assert check_views()


def test_rest_framework_views_need_no_middleware(settings):
    without_users(settings)
    with modify_settings(INSTALLED_APPS={"append": "rest_framework"}):
        assert check_views() == []


def test_project_without_urls_is_checked_as_well(settings):
    settings.ROOT_URLCONF = None
    without_users(settings)

    @idempotent
    def somewhere(request): ...

    assert any("somewhere" in message.obj for message in check_views())


def test_package_imports_no_auth_app():
    """Decorating, calling and checking import nothing of django.contrib.auth."""
    program = (
        "import django, sys;"
        "from django.conf import settings;"
        "settings.configure(INSTALLED_APPS=['django_dblock'], USE_TZ=True, ROOT_URLCONF=None,"
        " DATABASES={'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'x'}});"
        "from django_dblock import idempotent;"
        "django.setup();"
        "from django.test import RequestFactory;"
        "from django.views import View;"
        "view = idempotent(View.as_view());"
        "assert view(RequestFactory().get('/')).status_code == 405;"
        "from django_dblock.checks.views import check_views;"
        "[found] = check_views();"
        "assert found.id == 'dblock.W030';"
        "assert not [name for name in sys.modules if name.startswith('django.contrib.auth')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
