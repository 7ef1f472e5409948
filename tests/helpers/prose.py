"""Check the wording of docstrings, comments, messages and docs: ``python -m tests.helpers.prose``.

Each entry is a turn of phrase that made readers stop, with what to write in its place. The check
looks at comments and strings of the package and the example, and at the text of the docs, not at
code blocks. Add a phrase when a reader stumbles over another one.
"""

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
    r"\bthe one who\b|\bone who\b|\bthose who\b": "the client, the waiter, the holder",
}
_WORDS = {re.compile(pattern, re.IGNORECASE): advice for pattern, advice in PHRASES.items()}


def main() -> int:
    """Print each hit with its place; return how many there are."""
    hits = list(hits_of_sources()) + list(hits_of_pages())
    for hit in hits:
        print(hit)
    return len(hits)


def hits_of_sources() -> Iterator[str]:
    """Yield the hits in comments and strings."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type in (tokenize.COMMENT, tokenize.STRING):
                    yield from _hits(path, token.start[0], token.string)


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
            yield from _hits(path, 1, text)


def _hits(path: Path, first: int, text: str) -> Iterator[str]:
    for word, advice in _WORDS.items():
        for match in word.finditer(text):
            line = first + text.count("\n", 0, match.start())
            yield f"{path.relative_to(ROOT)}:{line}: {match[0]!r}: {advice}"


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
