"""The shop under attack, with its guards and without: ``manage.py demo``.

========================  =====================================================================
``rounds/``               what is attacked, and which invariants must survive: one module a round
``play.py``               a round from start to verdict: first unguarded, then guarded
``stage.py``              what every round is given: sizes, places, a site when it asks for one
``attack.py``             hundreds of visits by several processes, started by one shot
``crowd.py``              what those processes have in common
``buyers.py``             one of them: each visit buys one item
``editors.py``            one of them: each visit reads a product, changes it and saves it
``payers.py``             one of them: each visit pays one order, several times at once
``kills.py``              SIGKILL for the site's workers, in the middle of it
``workers.py``            processes of ``manage.py``, one of which is frozen and thawed
``interruption.py``       Ctrl-C and its kin
``site.py``               the real site, under gunicorn; ``children.py`` ends whatever was started
``database.py``           a database of the demo's own
``report.py``             progress while it runs, tables when it is over
========================  =====================================================================
"""
