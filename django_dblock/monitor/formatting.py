"""Times, and texts that somebody else has written, for people."""

from django.utils.translation import gettext as _

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_FEW = 10


def visible(text: str) -> str:
    r"""Spell out what would not show, or would turn the text around it: controls, bidi marks.

    ``evil\u202egnp`` is read as it is, and looks like nothing else.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(text: str) -> str:
    """Put an error's text into a sentence: no line breaks, no full stop."""
    return visible(" ".join(text.split())).rstrip(".")


def short(text: str, most: int) -> str:
    """Cut the middle out of what is too long: names differ at the end, too."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def lasting(seconds: float) -> str:
    """Say how long, in the two units that matter."""
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
