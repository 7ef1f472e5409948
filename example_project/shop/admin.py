from typing import Any

from django.contrib import admin

from django_dblock import VersionedAdmin
from shop.models import Order, OrderLine, Payment, Product, Settlement


@admin.register(Product)
class ProductAdmin(VersionedAdmin):
    list_display = ("sku", "name", "price", "stock")
    search_fields = ("sku", "name")
    # Stock is changed on the stock page, which takes the lock that purchases take.
    readonly_fields = ("stock",)


class ForReading:
    """What has happened is looked at, not edited."""

    def has_add_permission(self, *_: Any) -> bool:
        return False

    def has_change_permission(self, *_: Any) -> bool:
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        return False


class OrderLineInline(ForReading, admin.TabularInline):
    model = OrderLine


@admin.register(Order)
class OrderAdmin(ForReading, admin.ModelAdmin):
    list_display = ("number", "buyer", "total", "created_at")
    inlines = (OrderLineInline,)


@admin.register(Payment)
class PaymentAdmin(ForReading, admin.ModelAdmin):
    list_display = ("charge_id", "order", "amount", "created_at")
    list_select_related = ("order",)


@admin.register(Settlement)
class SettlementAdmin(ForReading, admin.ModelAdmin):
    list_display = ("date", "amount", "payments", "booked_at", "token")
