"""The app's registration: names it and hooks in the system checks."""

from django.apps import AppConfig


class DblockConfig(AppConfig):
    """``INSTALLED_APPS = [..., "django_dblock"]``."""

    name = "django_dblock"
    verbose_name = "Database locks"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks; begin to log what is slow."""
        from django_dblock import checks, view_checks  # noqa: F401 - registers by being imported
        from django_dblock.idempotency import checks as _  # noqa: F401
        from django_dblock.slow import follow_settings
        from django_dblock.versioning import checks as __  # noqa: F401

        follow_settings()
