"""Compression changes tags on their way: they come back weak, or with a suffix, and still match."""

import pytest
from django.test import Client, modify_settings

from django_dblock import etag
from tests.app.models import Product

pytestmark = pytest.mark.django_db


@pytest.fixture
def product():
    return Product.objects.create(name="tea", stock=1)


@pytest.fixture(autouse=True)
def _middleware(request):
    with modify_settings(
        MIDDLEWARE={
            "prepend": [
                "django.middleware.gzip.GZipMiddleware",
                "django.middleware.http.ConditionalGetMiddleware",
            ]
        }
    ):
        yield


def get(product, **headers):
    return Client().get(
        f"/http/plain/{product.pk}/", headers={"Accept-Encoding": "gzip", **headers}
    )


def put(product, tag):
    return Client().put(
        f"/http/plain/{product.pk}/",
        '{"stock": 7}',
        headers={"Accept-Encoding": "gzip", "If-Match": tag},
    )


def test_tag_weakened_by_gzip_still_matches(product):
    """The trap: with the strong comparison no client that takes gzip could ever write."""
    read = get(product)
    assert read["Content-Encoding"] == "gzip"
    assert read["ETag"] == f"W/{etag(product)}"
    written = put(product, read["ETag"])
    assert written.status_code == 200
    assert written["ETag"] == f"W/{etag(Product.objects.get())}"
    assert put(product, written["ETag"]).status_code == 200


def test_weak_tag_is_a_full_precondition(product):
    read = get(product)
    product.save()
    assert put(product, read["ETag"]).status_code == 412
    assert Product.objects.get().stock == 1


@pytest.mark.parametrize("suffix", ["-gzip", "--gzip", ";gzip", "-br", "-df"])
@pytest.mark.parametrize("weak", ["", "W/"])
def test_suffix_inside_the_quotes_still_matches(product, suffix, weak):
    """Apache's mod_deflate and mod_brotli, Jetty, and others."""
    tag = f"{weak}{etag(product)[:-1]}{suffix}" + '"'
    assert put(product, tag).status_code == 200
    assert put(product, tag).status_code == 412


def test_unchanged_row_is_304(product):
    tag = get(product)["ETag"]
    same = get(product, **{"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    assert get(product, **{"If-None-Match": etag(product)}).status_code == 304
    product.save()
    assert get(product, **{"If-None-Match": tag}).status_code == 200
