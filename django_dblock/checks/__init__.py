"""The system checks ``dblock.E…`` and ``dblock.W…``: settings, views and models."""
