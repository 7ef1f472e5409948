"""Settings of the example shop. Everything that differs between places comes from the environment.

==========================  =====================================================================
DATABASE_URL                any PostgreSQL; without it an embedded one is started
SECRET_KEY                  required in production; the default is for demonstrations only
DEBUG                       off
ALLOWED_HOSTS               localhost
CSRF_TRUSTED_ORIGINS        none; needed behind a TLS proxy
ACQUIRER_URL                where ``python -m acquirer --port 8010`` listens
SHOP_ACQUIRER_CALLS         how many calls to the acquirer there may be at a time
SHOP_LOCKING                on; off shows what happens without locks (``manage.py demo`` does)
SHOP_VERSIONS               on; off lets the later of two editors overwrite the earlier
SHOP_FENCING                on; off lets a settlement book, and a stock sync count, whose lease has
                            expired
SHOP_IDEMPOTENCY            on; off charges for a payment as often as it is asked for
SHOP_PARTITIONS             on; off lets a worker record a mail whose claim has expired
SHOP_OUTBOX_TTL             seconds after which a dead worker's mails are sent by another
SHOP_SETTLEMENT_TTL         seconds after which a settlement that froze is taken over
SHOP_STOCK_TTL              seconds after which a stock sync that died or froze is replaced
DBLOCK_ADVISORY_TIMEOUT     seconds a purchase waits for its product
DBLOCK_IDEMPOTENCY_LEASE    seconds after which a payment whose worker died is taken over
==========================  =====================================================================
"""

from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

INSECURE_DEMO_SECRET_KEY = "insecure-demo-key-set-SECRET_KEY-in-earnest"  # noqa: S105 - says so
SECRET_KEY = env.str("SECRET_KEY", INSECURE_DEMO_SECRET_KEY)
DEBUG = env.bool("DEBUG", False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

if not env.str("DATABASE_URL", ""):
    from shop_site import embedded

    embedded.database_url()  # exports DATABASE_URL

DATABASES = {"default": env.db_url("DATABASE_URL")}
# What `manage.py dblock list` and every other tool shows of a connection; locks add their names.
DATABASES["default"].setdefault("OPTIONS", {}).setdefault("application_name", "shop")
DATABASES["default"]["CONN_MAX_AGE"] = 60
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "shop",  # before django_dblock: it has a django_dblock/problem.html of its own
    "django_dblock",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "shop.middleware.LockTiming",
    "django_dblock.middleware.ConflictMiddleware",
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
                "shop.context.shop",
            ],
        },
    },
]

ROOT_URLCONF = "shop_site.urls"
WSGI_APPLICATION = "shop_site.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
LOGIN_URL = "admin:login"
STATIC_URL = "static/"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    # Sold out (409) and busy (503) are answers, not events; what breaks is logged at ERROR.
    "loggers": {"django.request": {"level": "ERROR"}},
}

# Too many want it: for a visitor as for a program that is "try again", not "in use by somebody".
DBLOCK_LOCKED_STATUS = 503
DBLOCK_ADVISORY_TIMEOUT = env.float("DBLOCK_ADVISORY_TIMEOUT", 5)

# More than twice ACQUIRER_TIMEOUT: a request may wait so long for a permit, and as long again for
# the acquirer.
DBLOCK_IDEMPOTENCY_LEASE = env.float("DBLOCK_IDEMPOTENCY_LEASE", 15)
# Of one order, which is whose keys they are: its buyer needs a few, and nobody fills the table.
DBLOCK_IDEMPOTENCY_MAX_KEYS = 100

SHOP_LOCKING = env.bool("SHOP_LOCKING", True)
SHOP_VERSIONS = env.bool("SHOP_VERSIONS", True)
if not SHOP_VERSIONS:
    MIDDLEWARE.append("shop.middleware.WithoutVersions")
SHOP_FENCING = env.bool("SHOP_FENCING", True)
SHOP_IDEMPOTENCY = env.bool("SHOP_IDEMPOTENCY", True)
SHOP_PARTITIONS = env.bool("SHOP_PARTITIONS", True)
SHOP_OUTBOX_TTL = env.float("SHOP_OUTBOX_TTL", 30)
SHOP_SETTLEMENT_TTL = env.float("SHOP_SETTLEMENT_TTL", 60)
SHOP_STOCK_TTL = env.float("SHOP_STOCK_TTL", 15)
SHOP_CURRENCY = "EUR"
ACQUIRER_URL = env.str("ACQUIRER_URL", "http://127.0.0.1:8010")
ACQUIRER_TIMEOUT = env.float("ACQUIRER_TIMEOUT", 5)
SHOP_ACQUIRER_CALLS = env.int("SHOP_ACQUIRER_CALLS", 5)
