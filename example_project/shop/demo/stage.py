"""What every round is given."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from shop.demo.attack import Load
from shop.demo.report import Report
from shop.demo.site import running_site


@dataclass(frozen=True, slots=True)
class Stage:
    """Sizes, places, and a site when a round asks for one.

    Attributes:
        run: a short name that is new each time; nothing a round makes meets an earlier run's.
        sabotage: ``guarded`` or ``unguarded`` turns that run into the other; for tests of the
            demo itself, which must then fail.
    """

    run: str
    load: Load
    stock: int
    workers: int
    database_url: str
    folder: Path
    report: Report
    sabotage: str | None = None

    def locking(self, *, guarded: bool) -> bool:
        sabotaged = self.sabotage == ("guarded" if guarded else "unguarded")
        return guarded != sabotaged

    def site(
        self, *, guarded: bool, port: int = 0, env: dict[str, str] | None = None
    ) -> AbstractContextManager[str]:
        return running_site(
            locking=self.locking(guarded=guarded),
            workers=self.workers,
            env={"DATABASE_URL": self.database_url, **(env or {})},
            log=self.folder / "site.log",
            port=port,
        )
