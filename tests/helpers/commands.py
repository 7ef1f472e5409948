"""Subcommands of ``manage.py dblock`` in this process, and a terminal to write to."""

from io import StringIO

from django.core.management import call_command


class Terminal(StringIO):
    def isatty(self):
        return True


def run(*arguments):
    out = StringIO()
    call_command("dblock", *arguments, stdout=out)
    return out.getvalue()
