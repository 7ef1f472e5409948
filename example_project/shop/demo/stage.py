"""What every round is given."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from django.db import transaction

from shop.demo.attack import Load
from shop.demo.report import Report
from shop.demo.site import running_site
from shop.models import Order, OrderLine, Product

GUARDS = {
    "SHOP_LOCKING": "True",
    "SHOP_VERSIONS": "True",
    "SHOP_FENCING": "True",
    "SHOP_IDEMPOTENCY": "True",
    "SHOP_PARTITIONS": "True",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Sizes, places, and a site when a round asks for one.

    Attributes:
        run: a short name that is new each time; nothing a round makes meets an earlier run's.
        load: of the buyers.
        stock: items that they fight for.
        edits: of one product, by editors.
        payments: each of another order.
        sabotage: ``guarded`` or ``unguarded`` turns that run into the other; for tests of the
            demo itself, which must then fail.
    """

    run: str
    load: Load
    stock: int
    edits: int
    payments: int
    workers: int
    database_url: str
    folder: Path
    report: Report
    sabotage: str | None = None

    def clear_shelves(self) -> None:
        """Delete the products that the rounds put up for sale, with their orders."""
        products = Product.objects.filter(sku__contains=f"-{self.run}-")
        with transaction.atomic():
            orders = set(Order.objects.filter(lines__product__in=products).values_list("pk"))
            OrderLine.objects.filter(product__in=products).delete()
            Order.objects.filter(pk__in=[pk for (pk,) in orders]).delete()
            products.delete()

    def site(self, *, port: int = 0, **env: str) -> AbstractContextManager[str]:
        """Run the site with every guard on, except as these variables say."""
        return running_site(
            workers=self.workers,
            env={**GUARDS, "DATABASE_URL": self.database_url, **env},
            log=self.folder / "site.log",
            port=port,
        )

    def attacked_site(
        self, switch: str, *, guarded: bool, **env: str
    ) -> AbstractContextManager[str]:
        """Run the site with one of its guards on or off; a sabotaged run gets the other."""
        return self.site(**self.switched(switch, guarded=guarded), **env)

    def switched(self, switch: str, *, guarded: bool) -> dict[str, str]:
        """Return the variable that turns a guard on or off; a sabotaged run gets the other."""
        sabotaged = self.sabotage == ("guarded" if guarded else "unguarded")
        return {switch: str(guarded != sabotaged)}
