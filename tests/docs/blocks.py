"""Take the code out of a page, in order, each piece with the line it stands on.

==========================  ======================================================================
```` ```python ````         run; with ``>>>`` it is a doctest, and its output is compared
```` ```console ````        ``$ python manage.py …`` is called, and its output is compared
```` ```postgresql ````     run on a connection of its own, rolled back at the end of the page
```` ```html ````           a template, written to the file that its first line, a comment, names
``<!-- run`` … ``-->``      Python that readers don't see: what stands around the visible code
``<!-- a new project -->``  what follows runs in a project and a test of its own
``<!-- not run: why -->``   before a fence: it is not run, for that reason
``<!-- prints: REGEX -->``  before a fence of a tutorial: what is printed, where that differs
``<!-- by hand`` … ``-->``  in a tutorial: Python that does what the reader is told to do by hand
==========================  ======================================================================

Other languages (``text``, ``sh``, ``shell``, ``ini`` …) are shown, not run.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

RUN = ("python", "console", "postgresql", "html")

_FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})\s*(?P<language>\{?[\w-]*\}?)")
_PRINTS = re.compile(r"^<!-- prints: (?P<prints>\S.*) -->$")
_NOT_RUN = re.compile(r"^<!-- not run: (?P<why>\S.*) -->$")


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of code on a page."""

    language: str
    source: str
    path: Path
    line: int
    not_run: str | None = None
    prints: str | None = None
    project: int = 0

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line}"


def blocks(path: Path, *, by_hand: bool = False) -> list[Block]:
    """Return the page's pieces of code, hidden ones included; what is done by hand if asked for."""
    found: list[Block] = []
    lines = path.read_text().splitlines()
    not_run = prints = None
    number = project = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("<!-- run"):
            end = lines.index("-->", number)
            block = _block("python", lines, number, end, path, None)
            found.append(replace(block, project=project))
            number = end + 1
        elif line == "<!-- a new project -->":
            project += 1
        elif line.startswith("<!-- by hand"):
            end = lines.index("-->", number)
            if by_hand:
                found.append(_block("by hand", lines, number, end, path, None))
            number = end + 1
        elif match := _NOT_RUN.match(line):
            not_run = match["why"]
        elif match := _PRINTS.match(line):
            prints = match["prints"]
        elif (match := _FENCE.match(line)) and match["fence"][0] == "`":
            end = lines.index(match["fence"], number)
            block = _block(match["language"], lines, number, end, path, not_run)
            found.append(replace(block, prints=prints, project=project))
            number, not_run, prints = end + 1, None, None
        elif line.strip():
            not_run = None
    return found


def _block(
    language: str, lines: list[str], start: int, end: int, path: Path, not_run: str | None
) -> Block:
    return Block(language, "\n".join([*lines[start:end], ""]), path, start, not_run)
