"""The products that ``manage.py seed`` puts on the shelves."""

from decimal import Decimal

from shop.models import Product

PRODUCTS = (
    ("padlock-brass", "Brass padlock", "24.90", 40, "One key, one holder. Opens at commit."),
    ("lease-ledger", "Lease ledger", "18.50", 25, "Every page has an expiry date and a number."),
    ("fence-post", "Fence post", "12.00", 120, "Stands where the last one stood, one number up."),
    ("queue-rope", "Queue rope, velvet", "39.00", 12, "First come, first served, since 1996."),
    ("receipt-roll", "Receipt rolls, ten", "9.90", 300, "The same answer, however often you ask."),
    ("brass-bell", "Counter bell", "15.75", 30, "Rings exactly once."),
    ("hourglass", "Hourglass, ten seconds", "21.00", 18, "How long we are willing to wait."),
    ("signed-print", "Signed print, numbered", "180.00", 3, "Three were made. Three will be sold."),
)


def seed() -> int:
    """Put the products there that are missing, and return how many; touch no other."""
    new = 0
    for sku, name, price, stock, description in PRODUCTS:
        _, created = Product.objects.get_or_create(
            sku=sku,
            defaults={
                "name": name,
                "price": Decimal(price),
                "stock": stock,
                "description": description,
            },
        )
        new += created
    return new
