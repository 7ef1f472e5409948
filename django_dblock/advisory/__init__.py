"""Advisory locks: locks that belong to a transaction and end with it."""
