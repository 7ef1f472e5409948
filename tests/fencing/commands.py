"""``dblock run`` in this process: its exit status, its refusals and what it printed."""

import sys

import pytest
from django.core.management import CommandError, call_command

from tests.fencing.helpers import NAME


def run(*arguments, command=("true",)):
    """Return the exit status, as a shell would see it."""
    try:
        call_command("dblock", "run", "--lock", NAME, *arguments, "--", *command)
    except SystemExit as end:
        return end.code
    return 0


def refusal(*arguments, command=("true",)):
    with pytest.raises(CommandError) as caught:
        run(*arguments, command=command)
    return caught.value


def python(source):
    return (sys.executable, "-c", source)


def printed(capfd):
    return capfd.readouterr().out
