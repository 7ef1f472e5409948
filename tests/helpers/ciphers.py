"""A cipher for tests."""


class Turned:
    """A cipher that can be told from none."""

    def encrypt(self, data):
        return b"~" + data[::-1]

    def decrypt(self, data):
        return data[:0:-1]
