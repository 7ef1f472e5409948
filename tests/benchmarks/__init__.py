"""What the locks cost, beside the raw SQL they are made of and beside other packages.

``python -m tests.benchmarks`` starts its own servers, measures every scenario in interleaved rounds
and writes JSON, a table and plots. It reports; it never fails on a time.

The way of a run: ``services`` starts the servers, ``catalogue`` names the scenarios, ``measure``
and ``crowd`` time them, ``targets`` judges them, ``table`` and ``plots`` show them. A new row is a
:class:`~tests.benchmarks.measure.Row` in the scenario it belongs to; a new scenario is a function
that the catalogue lists.
"""
