"""What other packages put around Django's connection: ten-line stand-ins."""

from typing import Any


class Proxy:
    """A transparent object around the driver's connection or cursor, as APM agents have it."""

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "wrapped", wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.wrapped, name)
