"""Start-up: the modules that an import of the package, or the installed app, loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITHOUT_ADMIN = ["django.contrib.contenttypes", "django.contrib.auth"]
WITH_ADMIN = [*WITHOUT_ADMIN, *(f"django.contrib.{name}" for name in ("messages", "admin"))]

SET_UP = """
import json, sys
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=json.loads(sys.argv[1]), SECRET_KEY="x", ROOT_URLCONF="nowhere",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "x"}},
)
django.setup()
"""


def loaded(program, *arguments):
    """All modules that a new process has loaded at the end of a program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport json, sys\nprint(json.dumps([*sys.modules]))",
         *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return set(json.loads(done.stdout))


def added(apps):
    """The modules that the app adds to ``django.setup()``."""
    before = loaded(SET_UP, json.dumps(apps))
    return loaded(SET_UP, json.dumps([*apps, "django_dblock"])) - before


def test_import_loads_one_module():
    modules = loaded("import django_dblock")
    assert {name for name in modules if name.startswith("django")} == {"django_dblock"}
    assert not any(name.startswith("psycopg") for name in modules)
    assert len(modules) <= 1.1 * len(loaded("import django.db"))


def test_setup_imports_only_models_and_settings():
    """And no driver: Django itself imports psycopg for the first model of any app."""
    assert added(WITHOUT_ADMIN) == {
        "django_dblock",
        "django_dblock.apps",
        "django_dblock.conf",
        "django_dblock.models",
    }


def test_admin_imports_lists_but_not_pages():
    modules = added(WITH_ADMIN)
    assert {name for name in modules if name.startswith("django_dblock.")} == {
        "django_dblock.admin",
        "django_dblock.apps",
        "django_dblock.conf",
        "django_dblock.models",
        "django_dblock.monitor",
        "django_dblock.monitor.admin",
        "django_dblock.monitor.formatting",
    }
    assert len(modules) <= 12


def test_slow_lock_settings_import_their_log():
    program = SET_UP.replace('SECRET_KEY="x",', 'SECRET_KEY="x", DBLOCK_SLOW_WAIT=1,')
    assert "django_dblock.core.logging" in loaded(program, json.dumps(["django_dblock"]))


def test_check_imports_its_module_when_it_runs():
    program = f"{SET_UP}\nfrom django.core.checks import run_checks\nrun_checks(tags=['models'])"
    modules = loaded(program, json.dumps([*WITHOUT_ADMIN, "django_dblock"]))
    assert "django_dblock.checks.models" in modules
    assert "django_dblock.checks.views" not in modules
