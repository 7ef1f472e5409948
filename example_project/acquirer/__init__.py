"""A payment acquirer that charges nobody: a process of its own, with books of its own.

``python -m acquirer --port 8010 --books charges.sqlite3``. The shop knows nothing of it but its
address. What the shop's database and these books say about a payment can differ, exactly as with
a real one: no transaction spans both.
"""
