"""elastic-apm's transport that keeps events instead of sending them."""

from typing import Any

from elasticapm.transport.base import Transport


class Kept(Transport):
    """Keep each event in ``events``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.events: list[Any] = []

    def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
        if event_type == "span":
            self.events.append(data)

    def start_thread(self, pid: Any = None) -> None:
        """Nothing is sent."""

    def close(self) -> None:
        """Nothing is open."""
