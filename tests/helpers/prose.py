"""Check the wording of docstrings, comments, messages and docs: ``python -m tests.helpers.prose``.

Each entry is a turn of phrase that made readers stop, with what to write in its place. The check
looks at comments and strings of the package and the example, and at the text of the docs, not at
code blocks. In the package it also checks how docstrings begin, and that a docstring names the
errors which its function makes and raises. Add a phrase when a reader stumbles over another one.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("django_dblock", "example_project")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")

PHRASES = {
    r"\blikewise\b": "say it again in full",
    r"\bsee there\b": "name the place",
    r"\bas there\b": "name the place",
    r"\bis had\b|\bwas had\b|\bnot had\b": "is held, was acquired",
    r"\bnone that\b": "say what it is",
    r"\bfor ever\b": "indefinitely, permanently",
    r"\bwhat is told\b|\bis not told\b": "say who prints or reports what",
    r"\banew\b": "again",
    r"\bof one's own\b": "your own",
    r"\btime limit struck\b|\bstrikes first\b": "the timeout fires",
    r"\bis over\b(?= and the connection)": "is aborted",
    r"\bnobody said yes\b": "the prompt was declined",
    r"\blook-alikes\b": "PostgreSQL-compatible databases",
    r"\bof unknown make\b": "arbitrary",
    r"\bcomes again\b|\bcome again\b": "is repeated",
    r"\bwho has it\b|\bwho have it\b": "the holder",
    r"\bhang up\b": "close the connection",
    r"\bin vain\b": "without success, or say what was not acquired",
    r"\bat work on\b": "runs",
    r"\bis at it\b|\bare at it\b": "runs it",
    r"\b(can|to) be had\b": "can be acquired, can be read",
    r"\bas ever\b": "as before",
    r"\bthe one who\b|\bone who\b|\bthose who\b": "the client, the waiter, the holder",
}
PACKAGE_PHRASES = {
    r"\b(?:given|give|gives|gave|giving) (?:\w+ )?back\b(?! a lock)": "released, returned",
    r"\bwhoever\b(?! holds it)": "name the client, the waiter, the holder",
    r"\bhung up\b": "closed",
    r"\b(?:is|are|was|were) told\b(?! to end|,? that the stored)": "say who reports what to whom",
    r"\bstands? (?:in|under|at|around|below|before|there)\b": "is in, is below",
    r"\bfor people\b(?! only)": "readable",
    r"\bdo the same\b|\bDo what\b": "say what the function does",
    r"\bof ours\b|\bis ours\b|\bare ours\b": "the package's, this process's",
    r"\bmay come in\b": "is authorised",
    r"\bthe time is over\b": "the time has passed",
    r"\bwithout a word\b": "silently",
    r"\bpast Django\b": "without Django",
}
"""Phrases that only the package must not have."""

NO_VERBS = frozenset({
    "A", "All", "An", "As", "Called", "Do", "Here", "How", "In", "It", "Once", "Our", "The", "This",
    "What", "When", "Whether", "Who", "Whose", "Why",
})  # fmt: skip
"""First words of a function's docstring: such a line says what something is, not what is done."""


def _compiled(phrases: dict[str, str]) -> dict[re.Pattern[str], str]:
    return {re.compile(pattern, re.IGNORECASE): advice for pattern, advice in phrases.items()}


_WORDS = _compiled(PHRASES)
_PACKAGE_WORDS = _compiled(PHRASES | PACKAGE_PHRASES)


def main() -> int:
    """Print each hit with its place; return how many there are."""
    hits = [*hits_of_sources(), *hits_of_pages(), *hits_of_first_lines(), *hits_of_raises()]
    for hit in hits:
        print(hit)
    return len(hits)


def hits_of_sources() -> Iterator[str]:
    """Yield the hits in comments and strings."""
    for folder in SOURCES:
        words = _PACKAGE_WORDS if folder == "django_dblock" else _WORDS
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type in _TEXTS:
                    yield from _hits(path, token.start[0], token.string, words)


def hits_of_pages() -> Iterator[str]:
    """Yield the hits in the text of the docs."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text()
            # code keeps its lines, so that the numbers stay right
            text = re.sub(
                r"^```.*?^```$|<!--.*?-->",
                lambda block: "\n" * block[0].count("\n"),
                text,
                flags=re.DOTALL | re.MULTILINE,
            )
            yield from _hits(path, 1, text, _WORDS)


def hits_of_first_lines() -> Iterator[str]:
    """Yield the functions of the package whose docstring does not begin with a verb."""
    for path in sorted((ROOT / "django_dblock").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_noun(node):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if first.startswith("`") or first.split(" ")[0] in NO_VERBS:
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield f"{place}: {first!r}: begin with a verb: Return, Run, …"


def hits_of_raises() -> Iterator[str]:
    """Yield the public functions of the package that raise an error which they don't name."""
    for path in sorted((ROOT / "django_dblock").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not (
                node.name.startswith("_") or _is_noun(node)
            ):
                text = ast.get_docstring(node)
                for name in sorted(_raised(node)):
                    if text is not None and name not in text:
                        place = f"{path.relative_to(ROOT)}:{node.lineno}"
                        yield f"{place}: {node.name}() raises {name}: say when, under Raises"


def _raised(node: ast.AST) -> set[str]:
    """Return the classes of the errors that a function makes and raises, inner functions apart."""
    found = set()
    inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) if name[0].isupper():
                found.add(name)
        if not isinstance(child, inner):
            found |= _raised(child)
    return found


def _is_noun(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function is a property, whose docstring describes a value."""
    names = {getattr(each, "id", getattr(each, "attr", "")) for each in node.decorator_list}
    return bool(names & {"property", "cached_property"})


_TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def _hits(path: Path, first: int, text: str, words: dict[re.Pattern[str], str]) -> Iterator[str]:
    for word, advice in words.items():
        for match in word.finditer(text):
            line = first + text.count("\n", 0, match.start())
            yield f"{path.relative_to(ROOT)}:{line}: {match[0]!r}: {advice}"


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
