"""Finding the processes that a test has left behind."""

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "example_project"

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., tuple[int, str]]


def marked(mark: str) -> list[str]:
    """All processes with this mark in their environment, which children inherit."""
    if Path("/proc/self/environ").exists():
        return [found for folder in Path("/proc").glob("[0-9]*") if (found := _read(folder, mark))]
    listed = subprocess.run(  # macOS
        ["ps", "-A", "-E", "-ww", "-o", "command="], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if mark in line]


def _read(folder: Path, mark: str) -> str:
    with suppress(OSError):  # it ended meanwhile, or is somebody else's
        if mark.encode() in (folder / "environ").read_bytes():
            return (folder / "cmdline").read_text().replace("\0", " ") or "a zombie"
    return ""


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read what a process says up to the line with this text; return it."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"never said {text!r}:\n{said}")
