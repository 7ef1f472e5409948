"""Take a lock away from a running command: what a page says of it is seen."""

import sys
from typing import Any

from django.core.management import CommandError, call_command

SOURCE = """
import psycopg, sys, time
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("UPDATE django_dblock_fencedlock SET token = token + 1")
time.sleep(60)
"""


def lose_while_running(connect: str) -> tuple[Any, str]:
    """Return the exit status, and what was said."""
    command = (sys.executable, "-c", SOURCE, connect)
    try:
        call_command("dblock", "run", "--lock", "nightly-sync", "--ttl", "3", "--", *command)
    except CommandError as error:
        return error.returncode, str(error)
    return 0, ""
