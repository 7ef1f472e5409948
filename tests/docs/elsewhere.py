"""Run a management command of a page's project in a process of its own, as its reader does."""

import os
import subprocess
import sys
from pathlib import Path

from django.db import connection

Process = subprocess.Popen[str]

_PROGRAM = """
import sys

import django
from django.conf import settings
from django.core.management import call_command

settings.DATABASES["default"]["NAME"] = sys.argv[1]
settings.INSTALLED_APPS.append("store")
django.setup()
call_command(*sys.argv[2:])
"""


def start(folder: Path, *arguments: str) -> Process:
    """Start ``manage.py`` with these arguments; what it prints can be read from ``stdout``."""
    path = os.pathsep.join([str(folder), *sys.path])
    return Process(
        [sys.executable, "-u", "-c", _PROGRAM, connection.settings_dict["NAME"], *arguments],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
