"""Plain ``save()``: the last write wins."""

ERRORS = ()
