"""Idempotent requests: a repeated request has its effects once, and gets the first response.

There are two protocols and one table. The identity of a request is ``(namespace, scope, key)``: the
project or tenant, the client that owns the key, and the key that the client has chosen. A
fingerprint of the request is stored, so that the same key with another request is refused.

**Atomic mode.** All in one transaction:

1. One message takes the advisory lock on the identity, if the lock is free, and then reads the row.
   If another transaction holds the lock, the same request is running now: 409.
2. If the row exists, its response is replayed, and the view does not run.
3. The view runs, and its response is rendered, under a savepoint.
4. One message writes the row with the response, and commits.

*Why it is right.* The lock is taken before the read and ends with the transaction, so each reader
sees what the previous holder of the lock committed. The response commits with the effects. There is
no moment at which only one of them exists, so no crash can separate them. A crash rolls both back
and frees the lock, and the retry simply runs. Nothing has to be cleaned up, and no timeout has
to be guessed. If the client never gets the result of COMMIT, its retry finds the row.

**Lease mode**, where no transaction may stay open: while the outside world is called, and in async
views.

1. A short transaction takes the same lock, reads the row, and commits a *claim*: a random identity,
   a fencing token, and the time until which the run may be silent.
2. The view runs. ``step()`` records what must not be done again, and renews the claim.
3. The UPDATE that completes the request names the claim in its WHERE. The view can run it in the
   transaction of its effects, by ``complete(response)``; else it has a transaction of its own.

*Why it is right.* A claim is taken over only after its time has run out, by a claim with a greater
token. From then on no UPDATE of the old claim finds the row, so a transaction with ``complete()``
or ``guard()`` in it is rolled back. While such a transaction is open it holds the row, and the
claim is not taken over. The random identity makes that true after a failover or a restore too,
which can repeat the number of a row and its token. The outside world remains, which knows no token:
if a run dies between the effect of a step and its record, the next run repeats the step, unless
``on_abandoned="refuse"`` leaves the request to an operator. So a step happens *at least once*, and
exactly once only if the other service accepts ``derived_key()``, which is the same in each run.

Sources: draft-ietf-httpapi-idempotency-key-header-07; PostgreSQL manual, 13.3.5 "Advisory Locks",
13.2.1 "Read Committed Isolation Level"; P. Helland, "Idempotence Is Not a Medical Condition", 2012.
"""
