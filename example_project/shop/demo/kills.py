"""SIGKILL for the site's workers, at moments that a seed has chosen."""

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

KILLS = 4


class Kills:
    """Kill a worker each time that so many answers have come; gunicorn starts new ones.

    Args:
        folder: where ``gunicorn.conf.py`` keeps a file for each worker.
        answers: how many there will be.
        seed: the same seed chooses the same moments.

    Attributes:
        done: how many workers were killed.
    """

    def __init__(self, folder: Path, answers: int, seed: str) -> None:
        self._folder = folder
        self._dice = random.Random(seed)
        # One in each part but the last, so that all are over while payments are still on their way.
        part = answers / (KILLS + 1)
        self._moments = {
            max(1, int(number * part + self._dice.random() * part)) for number in range(KILLS)
        }
        self._answers = 0
        self.done = 0

    def on_answer(self) -> bool:
        """Count an answer, and kill if it is time; return whether one was killed."""
        self._answers += 1
        workers = sorted(self._folder.iterdir()) if self._answers in self._moments else []
        if workers:
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(int(self._dice.choice(workers).name), signal.SIGKILL)
                self.done += 1
                return True
        return False
