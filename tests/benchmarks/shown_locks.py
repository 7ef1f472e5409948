"""How the cost of the monitor's page and of the list grows with the locks that they show."""

from io import StringIO
from typing import Any

import psycopg
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.test import Client

from django_dblock.keys import encode, key_id
from django_dblock.monitor.views import monitor_url
from tests.benchmarks import listing
from tests.benchmarks.growth import curve, timed
from tests.benchmarks.measure import Size

BY_HAND = """
SELECT locks.classid, locks.objid, locks.mode, locks.granted, activity.pid, activity.usename,
    activity.application_name, activity.state, activity.query, activity.xact_start
FROM pg_locks AS locks LEFT JOIN pg_stat_activity AS activity USING (pid)
WHERE locks.locktype = 'advisory'
"""


def by_locks(size: Size) -> dict[str, Any]:
    """Let another session hold them while they are shown."""
    get_user_model().objects.create_superuser("watcher", "", "watcher")
    client = Client()
    client.force_login(get_user_model().objects.get(username="watcher"))
    address = monitor_url(admin.site)

    def by_hand() -> None:
        with connection.cursor() as cursor:
            cursor.execute(BY_HAND)
            "\n".join(map(str, cursor.fetchall()))

    def monitor() -> None:
        assert client.get(address).status_code == 200

    def listed() -> None:
        call_command("dblock", "list", "--json", stdout=StringIO())

    ways = {"hand": by_hand, "monitor": monitor, "list": listed}
    values: dict[str, list[float]] = {way: [] for way in ways}
    connection.ensure_connection()
    for count in size.shown:
        with psycopg.connect(connection.connection.info.dsn) as other:
            other.execute(listing.LABEL)
            numbers = [key_id(encode(("inventory", number))) for number in range(count)]
            other.execute(listing.LOCK, [numbers])
            for way, value in timed(ways, times=10, seconds=size.seconds / 2).items():
                values[way].append(value / 1000)
    return curve(
        "shown", "Locks on a page", "locks", "ms", size.shown,
        [("hand", "pg_locks and pg_stat_activity, by hand", values["hand"]),
         ("monitor", "the lock monitor's page", values["monitor"]),
         ("list", "dblock list --json", values["list"])],
    )  # fmt: skip
