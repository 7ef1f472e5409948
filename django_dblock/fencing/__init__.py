"""Leases with fencing tokens: locks that stay safe when their holder is frozen.

The protocol. The lock table has one row for each name. A name is free if it has no row, or if its
row has expired or was released.

1. *Acquire*: one statement picks the row if it is free, skipping a row that another transaction
   has locked, writes owner and expiry, and gives the row a new token. Without a free row nothing is
   written.
2. *Token*: the larger of the old token plus one and the clock in milliseconds, computed while the
   row is locked. So tokens grow in the order of the grants. Tokens are never behind the clock, so
   no token is granted twice after a row was purged, or after a crash or a failover undid a grant.
3. *Renew*: one statement for all leases of the process moves the expiry of each lease whose
   name and token match and which has not expired. The statement never moves an expiry back.
4. *Release*: one statement sets the expiry to now, if name and token match. Its commit does not
   wait for the disk: if a crash loses the release, the lease expires.
5. *Time* is the server's ``clock_timestamp()``, for every expiry. The holder's own clock only
   limits how long the holder trusts the latest result, counted from before the request, less a
   margin.
6. *Guard*: a transaction's first statement locks the lease's row FOR KEY SHARE, if name and
   token match and the lease has not expired.

Why it is safe:

- *Two grants never overlap.* A grant needs the row lock, and with the lock it sees the latest
  expiry. Renewals and releases need the same row lock, and the token of the latest grant. The
  commits of grants and renewals are durable, and replicated if a standby is synchronous: a grant or
  a renewal that the standby did not confirm does not count.
- *A holder stops in time.* The holder trusts a result until ``ttl`` after its *request*, and the
  server counts the same ttl from a later moment. So the holder's deadline comes before the lease's
  expiry, by any clock that runs at nearly the right speed; no clock needs to be set. A slow
  response only makes the trust shorter.
- *A holder that can't stop, because it is frozen, writes nothing stale.* KEY SHARE conflicts with
  the row lock of a grant, so from the guard's statement to its COMMIT nobody is granted the lock,
  even if the lease expires meanwhile. Once another holder was granted the lock, the token differs
  and the guard refuses. A frozen guard is ended by the server
  (``idle_in_transaction_session_timeout``).
- *What the database can't see* (other systems, ``on_commit`` hooks) gets the token, and must refuse
  a token smaller than the largest it has seen; in models of another database the claimed column
  does that.
- *Identity is the token*, never a host, process or thread: their names are reused, tokens are not.

The protocol does not stop code that neither checks nor guards, does not free a name earlier than
the ttl after its holder died, and does not order commits on another database.

The modules:

- ``lock`` is the block. The block waits by means of ``acquire``, and returns a ``lease``;
  ``async_lock`` does the same for ``async with``.
- ``lease`` is the holder's handle, with the guard that ties a transaction to the lease.
- ``deadline`` limits how long this process trusts the lease; ``heartbeat`` renews it.
- ``store`` sends the statements, which :mod:`django_dblock.sql.fencing` explains.
- ``lease_name`` makes the name of a key in the table.
- ``model`` fences rows; ``operations`` is for operators.

The tests in ``tests/fencing`` are named after the points of the protocol.
"""
