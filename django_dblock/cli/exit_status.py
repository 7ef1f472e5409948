"""The exit statuses of ``dblock run`` that are not the command's own, and of ``dblock doctor``."""

NOT_ACQUIRED = 75
"""Somebody else has the lock: EX_TEMPFAIL of sysexits.h, try again later."""

LOST = 79
"""The lock was lost while the command ran: the first number behind those of sysexits.h."""

USAGE = 2
"""As argparse has it."""

FAILED = 125
"""Nothing was run, because dblock itself failed; as ``timeout`` and ``docker run`` have it."""

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""As the shells have them."""

WARNINGS, ERRORS = 3, 4
"""What ``dblock doctor`` has found; 1 and 2 say that it could not look."""

SIGNALLED = 128
"""Plus the number of the signal; likewise."""
