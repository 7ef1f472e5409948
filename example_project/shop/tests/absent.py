"""What a test may do without, but not where everything is tested."""

import os
from unittest import SkipTest


def absent(message: str) -> Exception:
    """What to raise: a skipped test, or with ``DBLOCK_TEST_EVERYTHING`` set a failed one."""
    return (AssertionError if os.environ.get("DBLOCK_TEST_EVERYTHING") else SkipTest)(message)
