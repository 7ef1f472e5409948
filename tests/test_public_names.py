"""Public names: where they come from, and what their import loads."""

import ast
import importlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import django_dblock


def test_every_name_comes_from_its_own_module():
    for name, module in django_dblock._HOME.items():
        home = importlib.import_module(f"django_dblock.{module}")
        assert getattr(django_dblock, name) is getattr(home, name)
    assert set(dir(django_dblock)) == set(django_dblock.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lock'"):
        _ = django_dblock.lock


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING and the table of lazy names are one list."""
    tree = ast.parse(Path(django_dblock.__file__).read_text())
    typed = {
        name.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("django_dblock.")
        for name in node.names
    }
    assert typed == set(django_dblock._HOME)


def test_import_needs_no_settings_and_no_apps():
    program = (
        "import sys, django_dblock;"
        "assert 'django' not in sys.modules;"
        "from django_dblock import advisory_lock, LockTimeout;"
        "from django.conf import settings;"
        "assert not settings.configured"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_version_is_the_distributions():
    assert django_dblock.__version__ == version("django-dblock")


@pytest.mark.skipif("DBLOCK_TEST_INSTALLED" not in os.environ, reason="only in tox -e wheel")
def test_installed_wheel_is_tested():
    assert "site-packages" in django_dblock.__file__


def test_fixtures_can_be_loaded_before_django_is_set_up():
    """A conftest names them at its top, when nobody has configured anything yet."""
    program = (
        "import django_dblock.testing.pytest;"
        "from django.conf import settings;"
        "from django.apps import apps;"
        "assert not settings.configured and not apps.ready"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
