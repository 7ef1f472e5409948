"""What a forked child does first. A leaf."""

import os
from collections.abc import Callable


def after_fork_in_child(act: Callable[[], object]) -> None:
    """Do this in every child that is forked from now on; on Windows there is none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)
