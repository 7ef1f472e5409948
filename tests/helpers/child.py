"""Loaded once by the fork server: a child starts with Django set up and no connection open."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
