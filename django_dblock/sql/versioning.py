"""The statements of ``bulk_save_cas()``: many rows, each with its own version to compare.

The columns differ from call to call, so each statement is made of parts; values are parameters.
The types are named in the first row of VALUES, and hold for the others (PostgreSQL manual, 10.5).
"""

from collections.abc import Sequence

# The row has this version, or this primary key; names are quoted already.
IS = "{table}.{column} = %s"

# The objects to write: a number, the key, the version to compare with, and the new values of each.
GIVEN = "given (n, {names}) AS (VALUES {rows})"

# The rows that still have their version, locked in the order of their keys, so that two calls over
# the same rows never wait for each other; PostgreSQL looks at the version again under the lock.
FRESH = """fresh AS (
  SELECT given.n FROM {table} AS target JOIN given ON {join}{others}
  WHERE target.{version} = given.expected{among}
  ORDER BY {keys} FOR NO KEY UPDATE OF {locked}
)"""

# A row of another table that belongs to the object must be there as well, and is locked with it.
OTHER = " JOIN {table} AS other{at} ON other{at}.{key} = given.o{at}"

# Writes the locked rows and returns their numbers; all other objects were stale or deleted.
SAVE = """WITH {given}, {fresh}
UPDATE {table} AS target SET {assignments}
FROM given JOIN fresh ON fresh.n = given.n
WHERE {join} AND target.{version} = given.expected
RETURNING given.n"""

# The columns that multi-table inheritance keeps in another table than the version.
SAVE_REST = """WITH {given}
UPDATE {table} AS target SET {assignments} FROM given WHERE {join} RETURNING given.n"""


def save(  # noqa: PLR0913 - the parts of a statement
    *,
    table: str,
    keys: Sequence[str],
    version: str,
    columns: Sequence[str],
    types: Sequence[str],
    count: int,
    others: Sequence[tuple[str, str]] = (),
    among: str = "",
) -> str:
    """Return the statement for ``count`` rows; all names are quoted already.

    ``others`` are the tables of multi-table inheritance that hold a part of the object, each with
    its key. The parameters, for each row: a number, the key, the expected version, the key in each
    of the others, the columns' values; then those of ``among``.
    """
    names = [
        *(f"k{at}" for at in range(len(keys))),
        "expected",
        *(f"o{at}" for at in range(len(others))),
        *_values(columns),
    ]
    given = GIVEN.format(names=", ".join(names), rows=_rows(types, count))
    join, order = _join(keys), ", ".join(f"target.{key}" for key in keys)
    fresh = FRESH.format(
        table=table,
        join=join,
        others="".join(
            OTHER.format(table=other, at=at, key=key) for at, (other, key) in enumerate(others)
        ),
        version=version,
        keys=order,
        locked=", ".join(["target", *(f"other{at}" for at in range(len(others)))]),
        among=among,
    )
    assignments = ", ".join([*_assignments(columns), f"{version} = given.expected + 1"])
    return SAVE.format(
        given=given, fresh=fresh, table=table, assignments=assignments, version=version, join=join
    )


def save_rest(
    *, table: str, keys: Sequence[str], columns: Sequence[str], types: Sequence[str], count: int
) -> str:
    """Return the statement for ``count`` rows of a table without a version.

    Its parameters, for each row: a number, the key, the columns' values.
    """
    names = [*(f"k{at}" for at in range(len(keys))), *_values(columns)]
    given = GIVEN.format(names=", ".join(names), rows=_rows(types, count))
    assignments = ", ".join(_assignments(columns))
    return SAVE_REST.format(given=given, table=table, assignments=assignments, join=_join(keys))


def _values(columns: Sequence[str]) -> list[str]:
    return [f"v{at}" for at in range(len(columns))]


def _rows(types: Sequence[str], count: int) -> str:
    # Not %s::type: the minus sign of a number would bind weaker than the cast.
    first = ", ".join(f"CAST(%s AS {each})" for each in types)
    other = ", ".join(["%s"] * len(types))
    return ", ".join([f"({first})", *[f"({other})"] * (count - 1)])


def _join(keys: Sequence[str]) -> str:
    return " AND ".join(f"target.{key} = given.k{at}" for at, key in enumerate(keys))


def _assignments(columns: Sequence[str]) -> list[str]:
    return [f"{column} = given.v{at}" for at, column in enumerate(columns)]
