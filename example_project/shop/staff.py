"""The staff's pages: stock and settlements."""

from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from django_dblock import StaleObject, form_conflict_response
from shop.forms import StockForm
from shop.models import Payment, Product, Settlement
from shop.purchase import stock_lock


@staff_member_required
@require_GET
def stock(request: HttpRequest) -> HttpResponse:
    return render(request, "shop/stock.html", {"products": Product.objects.order_by("sku")})


@staff_member_required
@require_http_methods(["GET", "POST"])
def edit_stock(request: HttpRequest, sku: str) -> HttpResponse:
    """Change price and stock.

    The version, which the form carries, is for the minutes that it was open: if somebody has
    edited the product since, or bought of it, nothing is saved, and the clerk decides. The lock is
    for the moment of the save: a purchase that has read the stock already writes it from what it
    has read, and must not do so after this.
    """
    if request.method == "GET":
        product = get_object_or_404(Product, sku=sku)
        return _edit(request, product, StockForm(instance=product))
    try:
        with stock_lock(sku):
            product = get_object_or_404(Product, sku=sku)
            form = StockForm(request.POST, instance=product)
            if form.is_valid():
                form.save()
    except StaleObject as error:
        page, context = "shop/stock_conflict.html", {"product": error.instance}
        return form_conflict_response(request, form, error, template_name=page, context=context)
    if form.errors:
        product.refresh_from_db()
        return _edit(request, product, form, status=400)
    messages.success(request, f"{product.name}: {product.stock} in stock.")
    return redirect("shop:stock")


@staff_member_required
@require_GET
def settlements(request: HttpRequest) -> HttpResponse:
    context = {
        "settlements": Settlement.objects.all()[:50],
        "payments": Payment.objects.select_related("order")[:20],
    }
    return render(request, "shop/settlements.html", context)


def _edit(
    request: HttpRequest, product: Product, form: StockForm, status: int = 200
) -> HttpResponse:
    context = {"product": product, "form": form}
    return render(request, "shop/edit_stock.html", context, status=status)
