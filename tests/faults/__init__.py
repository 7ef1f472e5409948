"""What is thrown at the package: workloads under nemeses, judged by checkers.

``python -m tests.faults`` runs a *plan* of *trials*. In a trial a crew of worker processes runs one
*workload* through one *system* (ours, a peer, or ours with a part broken on purpose), while a
*nemesis* pauses, kills, cuts and crashes. Each worker writes a *history* of what it asked for and
what it was told; *checkers* compare that with what is in the tables afterwards.
"""
