"""The visitor's pages: look, choose, buy. How an order is paid is in ``paying.py``."""

from django.contrib import messages
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from shop.forms import CheckoutForm, QuantityForm
from shop.models import Basket, BasketLine, Product
from shop.purchase import EmptyBasket, SoldOut, buy, buy_basket

GUEST = "Guest"


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


@require_http_methods(["POST"])
def checkout(request: HttpRequest) -> HttpResponse:
    form = CheckoutForm(request.POST)
    if not form.is_valid():
        return _basket(request, form, status=400)
    try:
        return redirect(buy_basket(request.session.get("basket"), form.cleaned_data["buyer"]))
    except (SoldOut, EmptyBasket) as error:
        messages.error(request, str(error))
        return redirect("shop:basket")


def _basket(request: HttpRequest, form: CheckoutForm, status: int = 200) -> HttpResponse:
    found = (
        Basket.objects.prefetch_related("lines__product")
        .filter(pk=request.session.get("basket"))
        .first()
    )
    context = {"basket": found, "form": form}
    return render(request, "shop/basket.html", context, status=status)
