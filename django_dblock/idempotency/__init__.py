"""Requests that happen once: a repeated request has its effects once, and gets the first answer.

Two protocols, one table. The identity of a request is ``(scope, key)``: whose it is, and the key
that the client made up for it. What was asked for is kept as a fingerprint, so that a key used for
something else is refused.

**Atomic mode.** All in one transaction:

1. A message takes the advisory lock on (scope, key), if it is free, and reads the row with a
   statement after it. If somebody else has the lock, the same request is running now: 409.
2. A row that is there is the answer; nothing is run.
3. The view runs, and its response is rendered, under a savepoint.
4. The row is written, with the answer, and COMMIT ends it all.

*Why it is right.* The lock is taken before the read and ends with the transaction, so whoever reads
sees what the one before has committed. The answer commits with the effects: there is no moment at
which one exists without the other, and so none at which a crash could part them. A crash rolls both
back, and frees the lock; the retry simply runs. Nothing has to be cleaned up, and no time limit has
to be guessed. If COMMIT's own answer is lost, the row tells the retry what became of it.

**Lease mode**, where no transaction may stay open: while the outside world is called, and in async
views.

1. A short transaction takes the same lock, reads the row, and commits a *claim*: a fencing token,
   and a time until which the run may be silent.
2. The view runs. ``step()`` records what must not be done again, and renews the claim.
3. The completing UPDATE says ``WHERE token = mine``, in the transaction of the effects if the view
   calls ``complete(response)`` there, else in one of its own.

*Why it is right.* A claim is taken over only when its time is over, by the next token; from then
on no UPDATE of the old one finds its row, and a transaction with ``complete()`` or ``guard()`` in
it is rolled back. Such a transaction, while it is open, holds the row, and the row is then not
taken over. What is left is the outside world, which knows no token: a step whose run dies between
its effect and its record is run again by the next, unless ``on_abandoned="refuse"`` leaves that to
a person. So steps are *at least once*, and once only where the other side takes
``derived_key()``, which is the same in every run.

Sources: draft-ietf-httpapi-idempotency-key-header-07; PostgreSQL manual, 13.3.5 "Advisory Locks",
13.2.1 "Read Committed Isolation Level"; P. Helland, "Idempotence Is Not a Medical Condition", 2012.
"""
