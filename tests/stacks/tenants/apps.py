"""The app's label."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    """``tests.stacks.tenants`` as ``tenants``."""

    name = "tests.stacks.tenants"
    label = "tenants"
