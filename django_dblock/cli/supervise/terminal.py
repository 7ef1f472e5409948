"""Who has the terminal: while the command runs in a group of its own, that group has it."""

import os
import signal


class Terminal:
    """Ours while we are in its foreground, if it is both our input and our output; else nothing.

    In a pipeline (``dblock run … | less``) it belongs to the whole pipeline, and stays there.
    """

    def __init__(self) -> None:
        self.is_given = False

    def give(self, group: int) -> None:
        """Give it to the command, so that it reads from it, and Ctrl-C and Ctrl-Z go there."""
        if os.isatty(0) and os.isatty(1) and _foreground() == os.getpgrp():
            os.tcsetpgrp(0, group)
            self.is_given = True

    def take_back(self) -> None:
        """Take it back, from the background, where that would stop us."""
        if self.is_given:
            self.is_given = False
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                os.tcsetpgrp(0, os.getpgrp())
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _foreground() -> int | None:
    try:
        return os.tcgetpgrp(0)
    except OSError:  # another session's
        return None
