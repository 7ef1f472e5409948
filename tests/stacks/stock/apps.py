"""The app's label."""

from django.apps import AppConfig


class StockConfig(AppConfig):
    """``tests.stacks.stock`` as ``stock``."""

    name = "tests.stacks.stock"
    label = "stock"
