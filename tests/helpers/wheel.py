"""Install the wheel that was just built, and lay the tests where the source tree can't be seen.

``python wheel.py DIST AWAY SOURCE``, called by ``tox -e wheel``. The wheel must have each file of
the package, as it is in the tree, and no other. So the tests of the tree count for the wheel, and
only those of what is found at run time are run again: see tox.ini.
"""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

LEFT_OUT = [
    "benchmarks",
    "docs",
    "example",
    "faults",
    "stacks",
    "test_docs.py",
    "typing",
    "__pycache__",
]


def contents(wheel: Path) -> dict[str, bytes]:
    """Return what is in a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files(source: Path, package: str) -> dict[str, bytes]:
    """Return the files of a package in the tree, by name, without what Python has compiled."""
    return {
        str(path.relative_to(source)): path.read_bytes()
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def main() -> None:
    dist, away, source = map(Path, sys.argv[1:])
    [wheel] = dist.glob("*.whl")
    shipped = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}
    assert shipped == files(source, "django_dblock"), set(shipped)
    groups = tomllib.loads((source / "pyproject.toml").read_text())["dependency-groups"]
    needed = [
        requirement
        for name in ("test", "pytest", "demo")  # each includes the next
        for requirement in groups[name]
        if isinstance(requirement, str)
    ]
    install = [sys.executable, "-m", "pip", "install", "-q", str(wheel), *needed]
    subprocess.run(install, check=True)
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(source / "tests", away / "tests", ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(
        source / "example_project", away / "example_project",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    shutil.copy(source / "pyproject.toml", away)


if __name__ == "__main__":
    main()
