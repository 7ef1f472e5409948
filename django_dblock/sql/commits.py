"""What the commit of a statement's transaction waits for, whatever the session's setting says.

PostgreSQL manual, 19.5.1 "synchronous_commit". ``set_config(…, true)`` applies to the commit of the
transaction that the statement is in, and to no later one (tests/fencing/test_crash.py pins it).
Some statements return the fragment's value; nobody reads it.
"""

# A grant, a claim or a response has to survive: wait for the disk and the synchronous standbys. A
# session that waits until standbys have applied its commits still does.
DURABLE = """
set_config('synchronous_commit',
    CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
""".strip()

# For what a crash may lose. Others see it at once all the same.
UNAWAITED = "set_config('synchronous_commit', 'off', true)"
