"""Looking at slots from outside, and ending leases without their holders' knowledge."""

from django_dblock import FencedLock


def held(name):
    """The slots of a name in the table that are held now."""
    found = FencedLock.objects.raw(
        "SELECT * FROM django_dblock_fencedlock"
        " WHERE name = %s AND expires_at > clock_timestamp() ORDER BY slot",
        [name],
    )
    return [row.slot for row in found]


def expire(observer, name, slot=None):
    """What time does: the leases have run out, and their holders do not know."""
    observer.execute(
        "UPDATE django_dblock_fencedlock SET expires_at = clock_timestamp()"
        " WHERE name = %s AND (%s::int IS NULL OR slot = %s)",
        [name, slot, slot],
    )
