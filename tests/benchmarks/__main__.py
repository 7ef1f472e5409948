"""``python -m tests.benchmarks [--long] [--smoke] [--only NAME] [--output FOLDER]``."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    arguments = _arguments()
    sys.path.insert(0, str(ROOT / "example_project"))  # where embedded_postgres is
    # So that the servers end, too; a shell's background jobs start with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    from tests.benchmarks import services

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
    started = time.monotonic()
    try:
        with services.running() as running:
            import django

            django.setup()
            from tests.benchmarks import run

            found = run.everything(arguments.size, running, only=arguments.only, say=_say)
    except KeyboardInterrupt:
        _say("Stopped; the servers that were started here have ended.")
        return 130
    found["seconds"] = round(time.monotonic() - started, 1)

    from tests.benchmarks import output

    print(output.write(found, arguments.output, say=_say))
    _say(f"Took {found['seconds']:.0f} s; results are in {arguments.output}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--long",
        dest="size",
        action="store_const",
        const="long",
        help="more rounds, 10 million rows",
    )
    size.add_argument(
        "--smoke", dest="size", action="store_const", const="smoke", help="only: does it still run?"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="only these scenarios")
    parser.add_argument("--output", type=Path, default=Path(".bench"), help="default: .bench")
    parser.set_defaults(size="default")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
