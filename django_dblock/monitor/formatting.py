"""Times and foreign texts as readable text."""

from django.utils.translation import gettext as _

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_FEW = 10


def visible(text: str) -> str:
    r"""Escape characters that don't show or that reorder text: controls, bidi marks.

    ``evil\u202egnp`` is read as it is, and looks like nothing else.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(text: str) -> str:
    """Return an error's text without line breaks and without its full stop."""
    return visible(" ".join(text.split())).rstrip(".")


def short(text: str, most: int) -> str:
    """Return the text, its middle left out if it is too long: names differ at their ends."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def role_name(role: str) -> str:
    """Return what a lease is to its holder, in the reader's language."""
    return {
        "permit": _("permit"),
        "writer": _("writer"),
        "reader": _("reader"),
        "leader": _("leader"),
        "partition": _("partition"),
        "worker": _("worker"),
    }.get(role, _("lease"))


def numbered_role(role: str, slot: int) -> str:
    """Return the role with the slot's number; empty for a lease that is the only one of its name.

    ``permit 2``, ``reader 1``, ``leader``.
    """
    if role in ("leader", "writer"):
        return role_name(role)
    if role != "lock":
        return f"{role_name(role)} {slot}"
    return _("slot %(slot)s") % {"slot": slot} if slot else ""


def lasting(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < _FEW:
        return _("%(seconds).1f s") % {"seconds": max(seconds, 0.0)}
    whole = int(seconds)
    if whole < _MINUTE:
        return _("%(seconds)d s") % {"seconds": whole}
    if whole < _HOUR:
        minutes, rest = divmod(whole, _MINUTE)
        return _("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": rest}
    if whole < _DAY:
        hours, rest = divmod(whole, _HOUR)
        return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": rest // _MINUTE}
    days, rest = divmod(whole, _DAY)
    return _("%(days)d d %(hours)d h") % {"days": days, "hours": rest // _HOUR}
