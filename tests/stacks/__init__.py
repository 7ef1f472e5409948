"""The package beside the real packages of other people: ``tox -e stacks``.

Two kinds of tests live here. A package that only needs its models runs in this process, under
``tests.stacks.settings``. A package that patches the driver, replaces the database backend or
the event loop runs in a process of its own: a file in ``programs/``, started by the fixture
``run_program``, which prints one JSON object.
"""
