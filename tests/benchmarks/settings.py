"""Django's settings while it is measured; ``services`` put the addresses into os.environ."""

import importlib.util
import os

import environ

from tests.benchmarks.peers import ALIASES

DATABASES = {
    "default": environ.Env().db_url("DBLOCK_BENCH_POSTGRES"),
    "other": environ.Env().db_url("DBLOCK_BENCH_POSTGRES"),
    "latency": environ.Env().db_url("DBLOCK_BENCH_POSTGRES_LATENCY"),
}
for _database in DATABASES.values():
    _database.setdefault("OPTIONS", {})["application_name"] = "shop"

INSTALLED_APPS = [
    "django.contrib.contenttypes",
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
SECRET_KEY = os.urandom(16).hex()
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
