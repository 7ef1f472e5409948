"""What the workers do: a module each, with ``prepare``, ``turn`` and ``judge``."""
