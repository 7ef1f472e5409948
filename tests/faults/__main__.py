"""``python -m tests.faults [--minutes M] [--seed N] [--workload W] [--nemesis X] …``."""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    arguments = _arguments()
    paths = [str(ROOT), str(ROOT / "example_project")]  # embedded_postgres, the shop
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the workers and the shop, too
    # So that the servers end, too; a shell's background jobs start with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.faults.settings"

    import django

    from tests.faults import services

    try:
        with services.Services() as running:
            django.setup()
            from tests.faults import run

            return run.everything(arguments, running, say=_say)
    except KeyboardInterrupt:
        _say("Stopped; the servers and workers that were started here have ended.")
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, help="of each trial; by default what the minutes leave for it"
    )
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--workload", action="append", help="only trials of this workload")
    parser.add_argument("--nemesis", action="append", help="only trials under this nemesis")
    parser.add_argument("--system", action="append", help="only trials of this system")
    parser.add_argument("--backend", action="append", help="only trials with this backend")
    parser.add_argument("--trial", action="append", type=int, help="only the trial of this number")
    parser.add_argument("--mutations", action="store_true", help="only the broken ones")
    parser.add_argument(
        "--smoke", action="store_true", help="only: does each workload of ours still run?"
    )
    parser.add_argument("--output", type=Path, default=Path(".faults"), help="default: .faults")
    found = parser.parse_args()
    found.output = found.output.resolve()
    found.started = time.time()
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
