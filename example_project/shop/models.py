"""The shop's tables. How stock and orders change together is in ``purchase.py``."""

import uuid
import zlib
from decimal import Decimal
from typing import Self

from django.core.validators import MinValueValidator
from django.db import models
from django.urls import reverse
from django.utils import timezone

from django_dblock import VersionedModel, VersionedQuerySet


class ProductQuerySet(VersionedQuerySet["Product"]):
    def sold_out_last(self) -> Self:
        sold_out = models.ExpressionWrapper(models.Q(stock=0), models.BooleanField())
        return self.order_by(sold_out, "name", "sku")


class Product(VersionedModel):
    """What is sold. Staff have it open in forms for minutes, so each write of it is compared."""

    sku = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=100)
    description = models.TextField(blank=True)
    price = models.DecimalField(
        max_digits=10, decimal_places=2, validators=[MinValueValidator(Decimal("0.01"))]
    )
    stock = models.PositiveIntegerField(default=0)

    objects = ProductQuerySet.as_manager()

    class Meta:
        ordering = ("name", "sku")

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("shop:product", args=[self.sku])

    @property
    def hue(self) -> int:
        """The colour of its picture, which is only a letter on a tile."""
        return zlib.crc32(self.sku.encode()) % 360


class Basket(models.Model):
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"Basket {self.pk}"

    @property
    def total(self) -> Decimal:
        return sum((line.total for line in self.lines.all()), Decimal(0))


class BasketLine(models.Model):
    basket = models.ForeignKey(Basket, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.CASCADE, related_name="+")
    quantity = models.PositiveIntegerField(default=1)

    class Meta:
        ordering = ("pk",)
        constraints = (
            models.UniqueConstraint(fields=["basket", "product"], name="shop_one_line_a_product"),
        )

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product}"

    @property
    def total(self) -> Decimal:
        return self.quantity * self.product.price

    @classmethod
    def count(cls, basket_id: int | None) -> int:
        if basket_id is None:
            return 0
        lines = cls.objects.filter(basket=basket_id)
        return lines.aggregate(count=models.Sum("quantity", default=0))["count"]


class Order(models.Model):
    # Who knows the reference may see the order: it is in the address, and can't be guessed.
    reference = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    buyer = models.CharField(max_length=100)
    total = models.DecimalField(max_digits=12, decimal_places=2)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        return f"Order {self.number}"

    def get_absolute_url(self) -> str:
        return reverse("shop:order", args=[self.reference])

    @property
    def number(self) -> str:
        return str(self.reference)[:8]

    @property
    def is_paid(self) -> bool:
        return self.payments.exists()


class OrderLine(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.PROTECT, related_name="order_lines")
    quantity = models.PositiveIntegerField()
    price = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product}"

    @property
    def total(self) -> Decimal:
        return self.quantity * self.price


class Payment(models.Model):
    """What the shop knows of a charge. The acquirer's own books may know of more."""

    order = models.ForeignKey(Order, models.PROTECT, related_name="payments")
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    charge_id = models.CharField(max_length=100, unique=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    settlement = models.ForeignKey(
        "Settlement",
        models.PROTECT,
        null=True,
        editable=False,
        related_name="booked",
        db_index=False,  # payments are looked up by their day
        help_text="where it is booked; none until then",
    )

    class Meta:
        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        return self.charge_id


class Settlement(models.Model):
    """One day's payments, each booked once."""

    date = models.DateField(unique=True)
    amount = models.DecimalField(max_digits=14, decimal_places=2)
    payments = models.PositiveIntegerField()
    booked_at = models.DateTimeField(default=timezone.now)
    token = models.BigIntegerField(
        default=0, help_text="the fencing token of the worker that wrote it last"
    )

    class Meta:
        ordering = ("-date",)

    def __str__(self) -> str:
        return f"Settlement of {self.date}"


class Delivery(models.Model):
    """What the warehouse has put on the shelves; a table here, and elsewhere perhaps its feed."""

    number = models.PositiveIntegerField(
        unique=True, help_text="the warehouse's own, from 1 and without gaps"
    )
    product = models.ForeignKey(Product, models.CASCADE, related_name="+")
    quantity = models.PositiveIntegerField()

    class Meta:
        ordering = ("number",)
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return f"Delivery {self.number}: {self.quantity} of {self.product}"


class StockSync(models.Model):
    """Up to which of the warehouse's deliveries the stock is counted."""

    name = models.CharField(max_length=40, primary_key=True)
    position = models.PositiveIntegerField(default=0)
    token = models.BigIntegerField(
        default=0, help_text="the fencing token of the leader that counted last"
    )

    def __str__(self) -> str:
        return f"{self.name}: {self.position}"


class Mail(models.Model):
    """One mail that waits to be sent; written in the transaction of its order."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="mails")
    bucket = models.PositiveSmallIntegerField(help_text="the partition whose owner sends it")
    sent_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = (
            models.Index(
                fields=["bucket"], name="shop_mail_unsent", condition=models.Q(sent_at=None)
            ),
        )

    def __str__(self) -> str:
        return f"Mail about {self.order}"


class MailRecord(models.Model):
    """What a worker says it has sent. There is no unique constraint: the demo counts them."""

    mail = models.ForeignKey(Mail, models.CASCADE, related_name="records")
    worker = models.CharField(max_length=40)
    recorded_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.mail} by {self.worker}"


class OutboxClaim(models.Model):
    """A lock that only expires, for the demo: what ``SET key NX PX`` gives. Nobody else uses it."""

    bucket = models.PositiveSmallIntegerField(primary_key=True)
    owner = models.CharField(max_length=40)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"Bucket {self.bucket} of {self.owner}"
