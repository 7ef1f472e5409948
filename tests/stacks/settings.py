"""Settings of the tests that run beside other packages, in this process: ``tox -e stacks``.

An app of a package is added where the package is installed, so that part of them can be tried.
"""

from importlib.util import find_spec

from tests.settings import *  # noqa: F403 - all of them, and more
from tests.settings import INSTALLED_APPS

# The apps of other packages, by the module that has to be importable.
OTHER_APPS: dict[str, list[str]] = {}

INSTALLED_APPS = [
    *INSTALLED_APPS,
    *(app for package, apps in OTHER_APPS.items() if find_spec(package) for app in apps),
    "tests.stacks.stock",
]
