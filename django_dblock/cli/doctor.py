"""``dblock doctor``: check a live database, and print what to do about each problem."""

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser, OutputWrapper

from django_dblock.cli.console import ERRORS, WARNINGS, printable
from django_dblock.core.connection import alias_of
from django_dblock.doctor.examine import examine
from django_dblock.doctor.finding import LEVELS, Finding

SCHEMA = 1
"""Raised when a field of the JSON or a finding's id changes its meaning or goes."""

_INDENT = " " * 9


def add_arguments(parser: CommandParser) -> None:
    """Add the argument for the output's format."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Print the findings, the worst last; the exit status depends on the worst finding.

    Raises:
        SystemExit: with 3 after warnings, with 4 after errors.
    """
    found = sorted(examine(options["using"]), key=lambda finding: LEVELS.index(finding.level))
    if options["json"]:
        stdout.write(
            json.dumps(
                {
                    "schema": SCHEMA,
                    "using": alias_of(options["using"]),
                    "findings": [asdict(finding) for finding in found],
                },
                indent=2,
            )
        )
    else:
        for finding in found:
            stdout.write("\n".join(_lines(finding)))
    worst = found[-1].level
    if worst in ("warning", "error"):
        raise SystemExit(ERRORS if worst == "error" else WARNINGS)


def _lines(finding: Finding) -> list[str]:
    lines = [f"{finding.level:9}{finding.id}: {printable(finding.found)}"]
    if finding.follows:
        lines.append(f"{_INDENT}{printable(finding.follows)}")
    if finding.do:
        lines.append(f"{_INDENT}-> {printable(finding.do)}")
    return lines
