"""Settings of the package's own tests.

``DATABASE_URL`` points at any PostgreSQL; without it a throw-away one is started, of the major
version in ``DBLOCK_TEST_PG`` (18), and removed at exit. Child processes find it in DATABASE_URL.
Each worker of pytest-xdist has one of its own: the tests look at all the locks of a server.
"""

import os

import environ

from tests.helpers import servers

_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
# One that the process above a worker has started for itself is not the worker's.
if "DATABASE_URL" not in os.environ or os.environ.get("DBLOCK_TEST_SERVER_OF", _worker) != _worker:
    os.environ["DATABASE_URL"] = servers.throw_away().url
    os.environ["DBLOCK_TEST_SERVER_OF"] = _worker

DATABASES = {
    "default": environ.Env().db_url("DATABASE_URL"),
    "other": environ.Env().db_url("DATABASE_URL"),
    "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
DATABASES["default"].setdefault("OPTIONS", {})["application_name"] = "tests"
# A second database of the same cluster; the first one's test database is for all processes.
DATABASES["other"]["TEST"] = {"NAME": "test_dblock_other"}
DATABASES["default"]["TEST"] = {"NAME": "test_dblock"}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_dblock",
    "tests.app",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
STATIC_URL = "static/"
SECRET_KEY = "tests"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SILENCED_SYSTEM_CHECKS = [
    "dblock.W020",  # one admin of the tests is Django's own on purpose
]
ROOT_URLCONF = "tests.app.urls"
ALLOWED_HOSTS = ["*"]
