"""The subcommands of ``manage.py dblock``, a module each: ``add_arguments`` and ``run``."""
