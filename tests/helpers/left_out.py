"""At the end of a run: which groups of tests it left out, and the command for each of them."""

from collections import Counter
from typing import Any

import pytest

GROUPS = {
    "slow": "tox -e tests -- -m slow",
    "faults": "tox -e resilience",
    "stacks": "tox -e stacks",
}
"""The markers that a run leaves out unless it is asked for them, and what runs each."""

_left_out: Counter[str] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that were left out, by the first group they belong to."""
    for item in items:
        if group := next((name for name in GROUPS if item.get_closest_marker(name)), None):
            _left_out[group] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where this process is a worker, tell the one that shows the result."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over a worker's counts; all workers have collected the same tests."""
    if not _left_out:
        _left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was left out, and how it is run."""
    if not _left_out:
        return
    terminalreporter.section("left out of this run")
    for group, command in GROUPS.items():
        number = f"{_left_out[group]} tests" if _left_out[group] else "all tests"
        terminalreporter.line(f"{number:>11} marked {group:7} run them with: {command}")
    terminalreporter.line(
        "Other versions of Django and PostgreSQL, lint, types, docs and the wheel have tox"
        " environments: tox list. All of it: .ci/run"
    )
