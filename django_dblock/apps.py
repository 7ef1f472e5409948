"""The app's registration: names it and hooks in the system checks."""

from django.apps import AppConfig


class DblockConfig(AppConfig):
    """``INSTALLED_APPS = [..., "django_dblock"]``."""

    name = "django_dblock"
    verbose_name = "Database locks"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks; begin to log what is slow."""
        # Importing the checks registers them.
        from django_dblock.checks import models, settings, views  # noqa: F401
        from django_dblock.core.logging import follow_settings

        follow_settings()
