"""Settings of the tests that run beside other packages, in this process: ``tox -e stacks``.

An app of a package is added where the package is installed, so that part of them can be tried.
"""

from importlib.util import find_spec

from tests.settings import *  # noqa: F403 - all of them, and more
from tests.settings import INSTALLED_APPS

# The apps of other packages, by the module that has to be importable.
OTHER_APPS: dict[str, list[str]] = {
    "simple_history": ["simple_history", "tests.stacks.history"],
    "pghistory": ["pgtrigger", "pghistory", "tests.stacks.events"],
    "polymorphic": ["polymorphic", "tests.stacks.shapes"],
    "modeltranslation": ["modeltranslation", "tests.stacks.bilingual"],
    "nested_admin": ["nested_admin", "tests.stacks.nested"],
    "import_export": ["import_export", "tests.stacks.imports"],
}

LANGUAGES = [("en", "English"), ("de", "German")]
# Apps without migrations are made first, and some of these have foreign keys to Django's.
MIGRATION_MODULES = dict.fromkeys(("admin", "auth", "contenttypes", "sessions"))
PGTRIGGER_INSTALL_ON_MIGRATE = True  # these apps have no migrations

INSTALLED_APPS = [
    *INSTALLED_APPS,
    *(app for package, apps in OTHER_APPS.items() if find_spec(package) for app in apps),
    "tests.stacks.stock",
]
