"""The statements of the system checks."""

# What kind of server this is.
SERVER = "SELECT version(), pg_is_in_recovery(), current_setting('default_transaction_isolation')"

# Which of these tables are not where unqualified names are looked for.
MISSING_TABLES = """
SELECT name
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, number)
WHERE to_regclass(quote_ident(name)) IS NULL
ORDER BY number
"""
