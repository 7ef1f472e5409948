"""``python -m acquirer``: prints its address as its first line, then serves until it is ended."""

import argparse
import signal
import sys
from pathlib import Path

import lifeline

from acquirer.books import Books
from acquirer.server import Acquirer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m acquirer", description="A fake acquirer.")
    parser.add_argument("--port", type=int, default=8010, help="0 takes a free one")
    parser.add_argument("--books", type=Path, default=Path("charges.sqlite3"), metavar="FILE")
    parser.add_argument(
        "--delay",
        type=float,
        default=0,
        metavar="SECONDS",
        help="between booking a charge and saying so (%(default)s)",
    )
    parser.add_argument(
        "--lifeline", action="store_true", help="end when the standard input does, too"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Acquirer(options.port, Books(options.books), delay=options.delay) as server:
        print(server.url, flush=True)
        if options.lifeline:
            lifeline.hold_on()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
