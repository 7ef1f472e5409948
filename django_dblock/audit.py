"""Who ended what by force, or decided what becomes of it: the log ``django_dblock.audit``."""

import logging

from django.db import connections

audit_log = logging.getLogger("django_dblock.audit")


def doer(by: str | None, alias: str) -> str:
    """Return who does it: as the caller says, else the database role."""
    return by or f"database role {connections[alias].settings_dict['USER']}"
