from typing import Any

from django.contrib import admin
from django.forms import ModelForm
from django.http import HttpRequest

from shop.models import Order, OrderLine, Payment, Product, Settlement


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("sku", "name", "price", "stock")
    search_fields = ("sku", "name")
    # Stock is changed on the stock page, which takes the lock that purchases take.
    readonly_fields = ("stock",)

    def save_model(
        self,
        request: HttpRequest,  # noqa: ARG002
        obj: Product,
        form: ModelForm,
        change: bool,  # noqa: FBT001
    ) -> None:
        # A whole save would write back the stock of the moment the product was read.
        obj.save(update_fields=form.changed_data if change else None)


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
    list_display = ("date", "amount", "payments", "booked_at")
