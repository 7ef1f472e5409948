"""What goes wrong: a module each.

``torment(stage)`` runs in a thread beside the workers. Where there is more to a nemesis:

- ``around(stage)``, a context manager around all, which yields how workers reach the database;
- ``FAULTS``, by fault its share of the boundaries between statements, at which a worker brings it
  on itself, and ``pauses(ttl)``, how long a stop lasts;
- ``environment(stage, worker, life)``, variables for a worker, and ``PRELOAD``, whether they are
  for libfaketime;
- ``OWN_SERVER``, whether it starts a server for this trial alone; ``OTHERS``, what connections are
  called (a LIKE pattern) that are not the workers';
- ``CLOCK``, whether the *server's* clock is moved, so that nothing can be said of expiries.
"""
