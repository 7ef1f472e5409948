"""Ask the doctor, and lead an alias somewhere else for a while."""

from contextlib import contextmanager

from django.db import connections

from django_dblock.doctor.examine import examine


def found(using=None):
    """The findings, by their ids, each of which comes once."""
    findings = examine(using)
    by_id = {finding.id: finding for finding in findings}
    assert len(by_id) == len(findings)
    return by_id


@contextmanager
def leading(alias="default", **settings):
    """Change an alias's settings; new connections have them."""
    connection = connections[alias]
    connection.close()
    before = connection.settings_dict.copy()
    connection.settings_dict.update(settings)
    try:
        yield connection
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)


def with_options(text, **settings):
    """The same, with ``-c name=value`` settings of the session."""
    options = {**connections["default"].settings_dict["OPTIONS"], "options": text}
    return leading(OPTIONS=options, **settings)


HEALTHY = (
    "-c synchronous_commit=on -c idle_in_transaction_session_timeout=60s -c statement_timeout=60s"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
    " -c client_connection_check_interval=10s"
)
