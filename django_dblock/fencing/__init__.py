"""Leases with fencing tokens: locks that stay right when their holder is frozen.

The protocol, in one page. The lock table has one row for each name; a row that was never made, has
expired or was released is free.

1. *Acquire*: one statement picks the row if it is free, skipping it if anybody has it locked,
   writes owner and expiry, and gives it a new token. No free row: nothing is written.
2. *Token*: the larger of the old one plus one and the clock in milliseconds, worked out while the
   row is locked. So tokens grow in the order of the grants; and since they are never behind the
   clock, a row that was purged, or a grant that a crash or a failover undid, can't bring one back.
3. *Renew*: one statement for all leases of the process moves the expiry, where name and token are
   ours and the lease has not expired. It never moves one back.
4. *Release*: one statement sets the expiry to now, where name and token are ours.
5. *Time* is the server's ``clock_timestamp()``, for every expiry. The holder's own clock only says
   how long it may believe the latest answer, counted from before it asked, less a margin.
6. *Guard*: a transaction's first statement locks the lease's row FOR KEY SHARE, where name and
   token are ours and the lease has not expired.

Why it is safe:

- *Two grants never overlap.* A grant needs the row lock, and sees the latest expiry when it has it.
  Renewals and releases need the same row lock, and the token of the latest grant. The commits of
  grants and renewals are durable, and replicated where a standby is synchronous: one that the
  standby did not confirm does not count.
- *A holder stops in time.* It trusts an answer until ``ttl`` after it *asked*, and the server
  counts the same ttl from later on. So its own end comes before the lease's, by any clock that
  runs at nearly the right speed; nobody needs to set one. Slow answers only make the trust shorter.
- *A holder that can't stop, because it is frozen, writes nothing stale.* KEY SHARE conflicts with
  what a grant needs, so from the guard's statement to its COMMIT nobody is granted the lock, even
  if the lease expires meanwhile; and once somebody else was granted it, the token differs and the
  guard refuses. A frozen guard is ended by the server (``idle_in_transaction_session_timeout``).
- *What the database can't see* (other systems, ``on_commit`` hooks) gets the token, and refuses one
  that is smaller than it has seen; in models of another database the claimed column does that.
- *Identity is the token*, never a host, process or thread: names come back, tokens do not.

What it does not do: stop code that neither checks nor guards; bound how long a name is taken after
its holder died to less than the ttl; order commits on another database.

Where each part is:

- ``lock`` is the block. It asks through ``acquire``, which waits, and hands out a ``lease``;
  ``async_lock`` does the same for ``async with``.
- ``lease`` is the holder's handle, with the guard that ties a transaction to the lease.
- ``deadline`` says how long this process may trust the lease; ``heartbeat`` renews it.
- ``store`` sends the statements, which :mod:`django_dblock.sql.fencing` explains one by one.
- ``lease_name`` says what a key is called in the table.
- ``model`` fences rows; ``operations`` is for operators.

The tests in ``tests/fencing`` are named after the points of the protocol.
"""
