"""``manage.py dblock``."""
