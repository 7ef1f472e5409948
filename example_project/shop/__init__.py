"""A small shop whose every purchase is guarded by django_dblock; ``purchase.py`` is its heart."""
