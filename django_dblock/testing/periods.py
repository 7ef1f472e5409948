"""The database's time for jobs that run once in each period."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from unittest import mock

from django.utils import timezone

from django_dblock.coordination.once_per import once_per


@contextmanager
def database_time(moment: datetime) -> Iterator[None]:
    """Let every ``once_per`` job, and ``missed()``, take a moment for the database's time.

    ::

        with database_time(datetime(2026, 10, 25, 3, tzinfo=UTC)):
            settle()  # for the period of that moment

    Guaranteed: in the block, in every thread of this process, jobs run for the period in which the
    moment lies, and their records are kept as long as usual.

    Not guaranteed: anything about other clocks. Leases, the ages that are listed and
    ``timezone.now()`` stay as they are.

    Args:
        moment: an aware datetime.

    Raises:
        ValueError: the moment has no time zone.
    """
    if timezone.is_naive(moment):
        raise ValueError(f"{moment!r} has no time zone, so it names no moment.")
    with mock.patch.object(once_per, "now", return_value=moment):
        yield
