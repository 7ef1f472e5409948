"""Django's settings while it is measured; ``services`` put the addresses into os.environ."""

import importlib.util
import os

import environ

from tests.benchmarks.peers import ALIASES

DATABASES = {
    "default": environ.Env().db_url("DBLOCK_BENCH_POSTGRES"),
    "other": environ.Env().db_url("DBLOCK_BENCH_POSTGRES"),
    "latency": environ.Env().db_url("DBLOCK_BENCH_POSTGRES_LATENCY"),
    "prepared": environ.Env().db_url("DBLOCK_BENCH_POSTGRES"),
}
for _database in DATABASES.values():
    _database.setdefault("OPTIONS", {})["application_name"] = "shop"
    _database["CONN_MAX_AGE"] = None
# What a project sets that is connected to the server itself, without a pooler between.
DATABASES["prepared"]["OPTIONS"] |= {"server_side_binding": True, "prepare_threshold": 2}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_dblock",
    "tests.app",
    "tests.benchmarks",
    *(name for name in ("pgactivity", "pglock", "concurrency") if importlib.util.find_spec(name)),
]
# For django-idempotency-key, which keeps its answers in a cache.
CACHES = {
    "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    **{
        name: {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ[address],
        }
        for name, address in ALIASES.items()
        if address in os.environ
    },
}
CACHES.setdefault("default", CACHES["locmem"])
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "tests.benchmarks.site"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
# The same in the processes that this one starts: they read each other's sessions.
SECRET_KEY = os.environ.setdefault("DBLOCK_BENCH_SECRET", os.urandom(16).hex())
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
