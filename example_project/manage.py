#!/usr/bin/env python
"""The shop's command line: ``python manage.py demo`` is the one to start with."""

import os
import signal
import sys


def main() -> None:
    # SIGTERM ends a Python program without its exit handlers, and one of them stops the database.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop_site.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
