"""The rooms of the package and of its tests: what a module may hold, and what tests may import."""

import ast
from pathlib import Path

import pytest

import django_dblock

MODULES = sorted(Path(django_dblock.__file__).parent.rglob("*.py"))
TESTS = Path(__file__).parent


def bound(node):
    """The names that a statement at the top of a module binds, but not what it only extends."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        overloads = any("overload" in ast.unparse(each) for each in node.decorator_list)
        return [] if overloads else [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [each.id for each in targets if isinstance(each, ast.Name)]
    read = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} - set(names)
    value = getattr(node, "value", None)
    own = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)} if value else set()
    return [name for name in names if name not in own | read]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_name_is_bound_twice(path):
    """The second would silently take the place of the first, also for what stands above it."""
    names = [name for node in ast.parse(path.read_text()).body for name in bound(node)]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)


def imported(tree):
    """The full names that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{each.name}" for each in node.names)


def test_nothing_is_imported_from_a_module_of_tests():
    """What several of them use is in a helpers' module, where it can be found."""
    shop = TESTS.parent / "example_project"  # not beside the installed wheel
    found = [
        f"{path.relative_to(TESTS.parent)}: {name}"
        for path in sorted([*TESTS.rglob("*.py"), *shop.rglob("*.py")])
        for name in imported(ast.parse(path.read_text()))
        if any(part.startswith("test_") for part in name.split("."))
    ]
    assert found == []
