"""``python -m tests.benchmarks.publish [FOLDER …]``: put runs into the documentation.

The first folder, ``.bench`` by default, is the run that ``docs/benchmarks`` shows, with all its
pictures. A further folder is a run with another version of Django, of which it takes the table of
``save-inside``; or a longer run of some curves, which stand in the place of the first run's.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from tests.benchmarks import table

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = "save-inside"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.publish")
    parser.add_argument("folders", nargs="*", type=Path, default=[Path(".bench")])
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "benchmarks")
    arguments = parser.parse_args()
    first, *others = arguments.folders
    found = _read(first)
    further = [(folder, _read(folder)) for folder in others]
    compared = [_compared(run) for _, run in further]
    found["others"] = [run for run in compared if run is not None]
    target = arguments.to
    target.mkdir(parents=True, exist_ok=True)
    for old in (*target.glob("*.png"), *target.glob("*.svg")):
        old.unlink()
    for picture in first.glob("*.svg"):
        shutil.copyfile(picture, target / picture.name)
    longer = [(folder, run) for folder, run in further if not run["scenarios"]]
    for folder, run in longer:
        _replace_curves(found, run)
        for picture in folder.glob("curve-*.svg"):
            shutil.copyfile(picture, target / picture.name)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (target / "results.json").write_text(f"{text}\n", encoding="utf-8")
    (target / "results.txt").write_text(table.markdown(found), encoding="utf-8")
    (target / "pictures.txt").write_text(table.pictures(found), encoding="utf-8")


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def _compared(found: dict[str, Any]) -> dict[str, Any] | None:
    scenario = next((one for one in found["scenarios"] if one["name"] == SCENARIO), None)
    if scenario is None:
        return None
    return {"versions": found["versions"], "command": found["command"], "scenario": scenario}


def _replace_curves(found: dict[str, Any], longer: dict[str, Any]) -> None:
    """Put the curves of a longer run in the place of those with the same name."""
    run = {"command": longer["command"], "seconds": longer["seconds"]}
    taken = {curve["name"]: {**curve, "run": run} for curve in longer["curves"]}
    found["curves"] = [taken.get(curve["name"], curve) for curve in found["curves"]]


if __name__ == "__main__":
    main()
