"""Install the wheel that was just built, and lay the tests where the source tree can't be seen.

``python wheel.py DIST AWAY SOURCE``, called by ``tox -e wheel``.
"""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

NEEDED = [
    "django_dblock/migrations/0001_initial.py",
    "django_dblock/py.typed",
    "django_dblock/sql/advisory.py",
    "django_dblock/sql/fencing.py",
    "django_dblock/sql/versioning.py",
    "django_dblock/static/django_dblock/conflict.css",
    "django_dblock/templates/django_dblock/base.html",
    "django_dblock/templates/django_dblock/conflict.html",
    "django_dblock/templates/django_dblock/conflict_fields.html",
    "django_dblock/templates/django_dblock/admin/confirm.html",
]
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


def main() -> None:
    dist, away, source = map(Path, sys.argv[1:])
    [wheel] = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name in names for name in NEEDED), names
    strangers = {name.split("/")[0] for name in names} - {"django_dblock"}
    assert all(name.endswith(".dist-info") for name in strangers), strangers
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
