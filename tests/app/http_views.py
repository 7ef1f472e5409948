"""Views of versioned rows, each written in one of the ways that views are written."""

import json

from django.db import OperationalError, transaction
from django.http import HttpResponse, JsonResponse
from django.shortcuts import aget_object_or_404, get_object_or_404, redirect
from django.utils.decorators import method_decorator
from django.views import View

from django_dblock import (
    LockDeadlock,
    LockLost,
    LockTimeout,
    StaleFence,
    StaleObject,
    StaleObjects,
    etag,
    if_match,
    set_etag,
)
from tests.app.models import Counter, InvoiceLine, Product, Setting


def shown(product, status=200, **more):
    return JsonResponse({"name": product.name, "stock": product.stock, **more}, status=status)


def change(product, request):
    for name, value in json.loads(request.body).items():
        setattr(product, name, value)


@if_match()
def plain(request, pk):
    """GET, PUT, DELETE of one row."""
    product = get_object_or_404(Product, pk=pk)
    if request.method in {"GET", "HEAD"}:
        return set_etag(shown(product, text="x" * 1000), product)
    request.if_match.bind(product)
    if request.method == "DELETE":
        product.delete_cas()
        return HttpResponse(status=204)
    change(product, request)
    product.save()
    return shown(product, text="x" * 1000)


def unguarded(request, pk):
    """The same PUT without a version, for counting statements."""
    product = get_object_or_404(Product, pk=pk)
    change(product, request)
    product.save()
    return shown(product)


def check_then_act(request, pk):
    """What is often written: compare the tag, then write."""
    product = get_object_or_404(Product, pk=pk)
    if request.headers["If-Match"] != etag(product):
        return HttpResponse(status=412)
    change(product, request)
    Product.objects.filter(pk=pk).update(name=product.name, stock=product.stock)
    return shown(product)


@if_match(required=False)
def optional(request, pk):
    product = get_object_or_404(Product, pk=pk)
    request.if_match.bind(product)
    change(product, request)
    product.save()
    return shown(product)


@if_match
def blind(request, pk):
    """One statement: nothing is read before the UPDATE."""
    product = Product(pk=pk, **json.loads(request.body))
    product.save_cas(expected=request.if_match.expected(product), update_fields=["stock"])
    return HttpResponse()


@if_match()
def put(request, pk):
    """A PUT that changes or creates."""
    product = Product.objects.filter(pk=pk).first()
    if product is None:
        product = Product(pk=pk)
        change(product, request)
        request.if_match.insert(product)
        return shown(product, status=201)
    request.if_match.bind(product)
    change(product, request)
    product.save_cas()
    return shown(product)


@if_match()
def create_only(request, pk):
    product = Product(pk=pk)
    change(product, request)
    request.if_match.insert(product)
    return shown(product, status=201)


@if_match()
async def create_async(request, pk):
    product = Product(pk=pk)
    change(product, request)
    await request.if_match.ainsert(product)
    return shown(product, status=201)


@if_match()
def find_or_make(request, pk):
    """Binds what may never have been read."""
    product = Product.objects.filter(pk=pk).first() or Product(pk=pk)
    request.if_match.bind(product)
    product.save()
    return shown(product)


@if_match()
async def plain_async(request, pk):
    product = await aget_object_or_404(Product, pk=pk)
    if request.method == "GET":
        return set_etag(shown(product), product)
    request.if_match.bind(product)
    change(product, request)
    await product.asave_cas()
    return shown(product)


@if_match()
def forgets(request, pk):
    """The trap: it takes the header and writes without looking at it."""
    product = get_object_or_404(Product, pk=pk)
    change(product, request)
    product.save()
    return redirect("/") if "redirect" in request.GET else shown(product)


@if_match()
async def forgets_async(request, pk):
    return HttpResponse()


@if_match()
def refuses(request, pk):
    """It answers before it writes."""
    if "waive" in request.GET:
        request.if_match.waive()
        return HttpResponse("the form again")
    return HttpResponse(status=422)


@if_match(required=False)
def returns_nothing(request, pk):
    return None


class Edit(View):
    def get(self, request, pk):
        product = get_object_or_404(Product, pk=pk)
        return set_etag(shown(product), product, "class")

    @method_decorator(if_match(variant="class"))
    def put(self, request, pk):
        product = get_object_or_404(Product, pk=pk)
        request.if_match.bind(product)
        change(product, request)
        product.save()
        return shown(product)


@method_decorator(if_match, name="dispatch")
class EditAll(View):
    def put(self, request, pk):
        return Edit.put.__wrapped__(self, request, pk)


class AsyncEdit(View):
    @method_decorator(if_match)
    async def put(self, request, pk):
        return await plain_async.__wrapped__(request, pk)


@method_decorator(if_match, name="dispatch")
class AsyncEditAll(View):
    async def put(self, request, pk):
        return await plain_async.__wrapped__(request, pk)


@if_match()
def invoice(request, pk):
    """Two rows; the one that conflicts is the second."""
    line = InvoiceLine.objects.select_related("invoice").get(pk=pk)
    line.quantity += 1
    line.save()
    request.if_match.bind(line.invoice)
    line.invoice.save()
    return HttpResponse()


@if_match()
def two_instances(request, pk):
    """One row in two instances: the second conflicts with this request's own write."""
    first, second = Product.objects.get(pk=pk), Product.objects.get(pk=pk)
    request.if_match.bind(first)
    with transaction.atomic():
        first.save()
        second.save()
    return HttpResponse()


@if_match()
def other_row(request, pk):
    """The row that conflicts is not the one that the tag is about."""
    product, other = Product.objects.get(pk=pk), Setting.objects.get()
    request.if_match.bind(product)
    other.save_cas(expected=99)
    return HttpResponse()


@if_match()
def setting(request, pk):
    """Plain save() is the last write that wins, but not here."""
    found = Setting.objects.get(pk=pk)
    request.if_match.bind(found)
    found.value = json.loads(request.body)["value"]
    found.save()
    return HttpResponse()


@if_match(required=False)
def caught(request, pk):
    """It answers although what it had written was rolled back."""
    product = Product.objects.get(pk=pk)
    request.if_match.bind(product)
    with transaction.atomic():
        product.save()
        transaction.set_rollback(True)
    return HttpResponse()


def broken(sqlstate):
    error = OperationalError("the server said so")
    error.__cause__ = type("Cause", (Exception,), {"sqlstate": sqlstate})()
    return error


def trouble(name):
    """An error by its name, with data that must not be shown."""
    lock = {"keys": (("secret",),), "name": "secret", "using": "default"}
    product = Product(pk=4711, name="secret")
    match name:
        case "timeout":
            return LockTimeout(timeout=1, waited=1.0, **lock)
        case "deadlock":
            return LockDeadlock(**lock)
        case "fenced":
            return StaleFence(token=7, reason="secret", model="app.Product", pk=4711, **lock)
        case "lost":
            return LockLost(token=7, reason="secret", **lock)
        case "changed":
            return StaleObject(instance=product, expected=1, actual=2, using="default")
        case "deleted":
            return StaleObject(instance=product, expected=1, actual=None, using="default")
        case "several":
            return StaleObjects(model="app.Product", pks=[4711], using="default")
        case "serialization":
            return broken("40001")
        case "cancelled":
            return broken("57014")
    return LookupError("secret")


def fails(request, name):
    Counter.objects.get_or_create(name=name)
    raise trouble(name)


async def fails_async(request, name):
    await Counter.objects.aget_or_create(name=name)
    raise trouble(name)


@if_match(required=False)
def fails_conditionally(request, name):
    request.if_match.waive()
    Counter.objects.get_or_create(name=name)
    raise trouble(name)
