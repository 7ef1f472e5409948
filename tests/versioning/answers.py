"""How each error is answered: its status, its code and Retry-After."""

STATUSES = [
    ("timeout", 423, "locked", "1"),
    ("deadlock", 409, "conflict", "1"),
    ("serialization", 409, "conflict", "1"),
    ("fenced", 409, "taken_over", None),
    ("lost", 409, "lock_lost", None),
    ("changed", 409, "changed", None),
    ("deleted", 409, "deleted", None),
    ("several", 409, "changed", None),
]
