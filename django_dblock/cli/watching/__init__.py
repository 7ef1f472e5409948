"""``dblock watch``: a picture is taken, put on a screen, and waited for the next."""
