"""The person at the command line: asked before something is ended by force, and known by name."""

import getpass
import os
import sys

from django.core.management.base import CommandError


def confirm(question: str) -> None:
    """Go on only after a yes.

    Raises:
        CommandError: it was not a yes, or nobody is there.
    """
    if not sys.stdin.isatty():
        raise CommandError("Nobody is there to ask. Pass --yes to do it.")
    answer = input(f"{question} [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("Not done.")


def operator_name() -> str:
    """Return who runs this, by what the system knows, not by what the environment says."""
    try:
        import pwd

        uid = os.getuid()
        user = pwd.getpwuid(uid).pw_name
    except ImportError:  # Windows
        return getpass.getuser()
    except KeyError:  # a container that runs as a mere number
        return f"uid {uid}"
    behind = os.environ.get("SUDO_USER") if uid == 0 else None
    return f"{user} (sudo: {behind})" if behind else user
