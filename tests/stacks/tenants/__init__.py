"""The shared app of the program ``tenants``: who the tenants are."""


def current_schema() -> str:
    """Return the tenant's schema; the value of ``DBLOCK_NAMESPACE``."""
    from django.db import connection

    return str(getattr(connection, "schema_name", "public"))
