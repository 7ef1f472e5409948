"""Deque's axe-core, from the wheel ``axe-core-python``, run on the page that is open."""

from pathlib import Path
from typing import Any

from shop.tests.absent import absent

try:
    import axe_core_python
except ImportError as error:
    raise absent("axe-core-python is not installed") from error

_SOURCE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()

# Django's own, on every page of its admin, and not ours to mend.
_DJANGOS = ["#header", "#nav-sidebar", "#toggle-nav-sidebar", ".breadcrumbs", "#footer"]


def violations(driver: Any) -> list[str]:
    """What breaks a rule of WCAG 2.1 A and AA or a best practice, and where."""
    driver.execute_script(_SOURCE)
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run({exclude: arguments[0].map((each) => [each])})"
        ".then((results) => done(results.violations), (error) => done([String(error)]))",
        _DJANGOS,
    )
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]} "
        f"{each['nodes'][0]['failureSummary']}"
        for each in found
    ]
