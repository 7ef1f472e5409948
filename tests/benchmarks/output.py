"""What a run leaves in its folder: ``results.json``, ``results.txt`` and plots."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import table


def write(found: dict[str, Any], folder: Path, *, say: Callable[[str], None]) -> str:
    """Write everything; return the table, for the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(f"{text}\n", encoding="utf-8")
    shown = table.markdown(found)
    (folder / "results.txt").write_text(shown, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        say("Left out, plots: matplotlib is not installed (the group 'bench' has it)")
    else:
        from tests.benchmarks import plots

        plots.draw(found, folder)
    return shown
