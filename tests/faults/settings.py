"""Django's settings of the workers; a trial says later which server they connect to."""

import os

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "OPTIONS": {},
    }
}
# Another line to the same server, for one who has books of its own and commits by itself.
DATABASES["acquirer"] = {**DATABASES["default"]}
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django_dblock",
    "tests.faults",
]
_redis = os.environ.get("DBLOCK_FAULTS_REDIS")
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": _redis}
    if _redis
    else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
}
IDEMPOTENCY_KEY = {
    "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage", "CACHE_NAME": "default"},
    "LOCK": {"CLASS": "idempotency_key.locks.redis.MultiProcessRedisLock", "LOCATION": _redis},
    "CONFLICT_STATUS_CODE": None,  # the first answer's own, as ours
}
SECRET_KEY = "faults"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ALLOWED_HOSTS = ["*"]
LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "CRITICAL"}}
DBLOCK_IDEMPOTENCY_LEASE = 1
