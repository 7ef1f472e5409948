"""The visitor's pages: look, choose, buy. How an order is paid is in ``paying.py``."""

import uuid

from django.contrib import messages
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from django_dblock import idempotent
from shop.forms import CheckoutForm, QuantityForm
from shop.models import Basket, BasketLine, Product
from shop.purchase import EmptyBasket, SoldOut, buy, buy_basket

GUEST = "Guest"
SECOND_CLICK = 10
"""Seconds for which the second click on "Order" waits for the first, to show the same order."""


@require_GET
def products(request: HttpRequest) -> HttpResponse:
    return render(request, "shop/products.html", {"products": Product.objects.sold_out_last()})


@require_GET
def product(request: HttpRequest, sku: str) -> HttpResponse:
    found = get_object_or_404(Product, sku=sku)
    return render(request, "shop/product.html", {"product": found, "form": QuantityForm()})


@require_POST
def buy_now(request: HttpRequest, sku: str) -> HttpResponse:
    found = get_object_or_404(Product, sku=sku)
    form = QuantityForm(request.POST)
    if not form.is_valid():
        return render(request, "shop/product.html", {"product": found, "form": form}, status=400)
    try:
        return redirect(buy(sku, form.cleaned_data["quantity"], GUEST))
    except SoldOut as error:
        messages.error(request, str(error))
        return redirect(found)


@require_POST
def add_to_basket(request: HttpRequest, sku: str) -> HttpResponse:
    found = get_object_or_404(Product, sku=sku)
    form = QuantityForm(request.POST)
    if not form.is_valid():
        return render(request, "shop/product.html", {"product": found, "form": form}, status=400)
    basket_id = request.session.get("basket")
    if basket_id is None:
        basket_id = request.session["basket"] = Basket.objects.create().pk
    # A sum that the database does: two clicks at once both count.
    quantity = form.cleaned_data["quantity"]
    line, new = BasketLine.objects.get_or_create(
        basket_id=basket_id, product=found, defaults={"quantity": quantity}
    )
    if not new:
        BasketLine.objects.filter(pk=line.pk).update(quantity=F("quantity") + quantity)
    messages.success(request, f"{found.name} is in your basket.")
    return redirect("shop:basket")


@require_GET
def basket(request: HttpRequest) -> HttpResponse:
    return _basket(request, CheckoutForm())


@require_POST
def remove_from_basket(request: HttpRequest, line: int) -> HttpResponse:
    BasketLine.objects.filter(basket=request.session.get("basket"), pk=line).delete()
    return redirect("shop:basket")


@require_POST
def checkout(request: HttpRequest) -> HttpResponse:
    form = CheckoutForm(request.POST)
    if not form.is_valid():
        return _basket(request, form, status=400)
    basket_id = request.session.get("basket")
    if basket_id is None:
        messages.error(request, str(EmptyBasket()))
        return redirect("shop:basket")
    return _checkout(request, basket_id, form.cleaned_data["buyer"])


# The second click leads to the order, too; without this it would say that the basket is empty. The
# order and this answer commit together. A basket belongs to one session, and so do its keys.
@idempotent(
    scope=lambda request: ("basket", request.session["basket"]),
    key=lambda request: request.POST.get("idempotency_key"),
    fingerprint=lambda request: request.POST["buyer"],
    required=False,
    wait=SECOND_CLICK,
)
def _checkout(request: HttpRequest, basket_id: int, buyer: str) -> HttpResponse:
    try:
        return redirect(buy_basket(basket_id, buyer))
    except (SoldOut, EmptyBasket) as error:
        messages.error(request, str(error))
        return redirect("shop:basket")


def _basket(request: HttpRequest, form: CheckoutForm, status: int = 200) -> HttpResponse:
    found = (
        Basket.objects.prefetch_related("lines__product")
        .filter(pk=request.session.get("basket"))
        .first()
    )
    context = {"basket": found, "form": form, "checkout_key": uuid.uuid4().hex}
    return render(request, "shop/basket.html", context, status=status)
