"""The options of a protected view or task, checked when it is decorated."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

from django_dblock.conf import MAX_TIMEOUT, conf, is_seconds, seconds_of

Mode = Literal["atomic", "lease"]
OnAbandoned = Literal["takeover", "refuse"]
Duration = timedelta | float


@dataclass(frozen=True, slots=True)
class Options:
    """How a request is run once; :func:`django_dblock.idempotent` describes each option."""

    mode: Mode = "atomic"
    ttl: Duration | None = None
    wait: float = 0
    lease: Duration | None = None
    on_abandoned: OnAbandoned = "takeover"
    store_body: bool = True
    using: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode={self.mode!r} is not 'atomic' or 'lease'.")
        if self.on_abandoned not in get_args(OnAbandoned):
            raise ValueError(f"on_abandoned={self.on_abandoned!r} is not 'takeover' or 'refuse'.")
        for name in ("ttl", "lease"):
            value = getattr(self, name)
            if value is not None and seconds_of(value) is None:
                raise ValueError(
                    f"{name}={value!r} is not a timedelta or a number of seconds above 0."
                )
        if not is_seconds(self.wait):
            raise ValueError(
                f"wait={self.wait!r} is not a number of seconds from 0 to {MAX_TIMEOUT:.0f}."
            )
        if self.mode == "atomic" and (self.lease is not None or self.on_abandoned != "takeover"):
            raise ValueError(
                "lease= and on_abandoned= are for mode='lease': in atomic mode a crash rolls the "
                "effects back, so nothing is ever abandoned."
            )

    @property
    def ttl_seconds(self) -> float:
        """The seconds for which the response is stored."""
        return (self.ttl is not None and seconds_of(self.ttl)) or conf.idempotency_ttl

    @property
    def lease_seconds(self) -> float:
        """The seconds for which a run may be silent in lease mode."""
        return (self.lease is not None and seconds_of(self.lease)) or conf.idempotency_lease
