"""Loaded once by the fork server: a child starts with Django set up and no connection open.

The views are loaded, too, or each child would load them by itself.
"""

import os
from importlib import import_module

import django
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
if urls := getattr(settings, "ROOT_URLCONF", None):
    import_module("django.test")
    import_module(urls)
