"""What a statement reads, by its plan: bounds are asserted on rows, never on times."""

import json

from django.db import connection


def rows_read(query):
    """How many rows the scans of a query have looked at."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT json) {query}")
        [(found,)] = cursor.fetchall()
    found = found if isinstance(found, list) else json.loads(found)
    return sum(
        node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        for node in walk(found[0]["Plan"])
        if "Scan" in node["Node Type"]
    )


def walk(node):
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)
