"""A form saves only over what it has shown: the comparison is in its UPDATE."""

import pytest

from django_dblock import StaleObject, VersionedModelForm
from tests.app.models import Product

pytestmark = pytest.mark.django_db(transaction=True)


class ProductForm(VersionedModelForm):
    class Meta:
        model = Product
        fields = ("name", "price", "stock")


def sent(form, **changes):
    """What a browser would send of a form that it was shown."""
    data = {}
    for bound in form:
        value = bound.value()
        if value is True:
            data[bound.html_name] = "on"
        elif value not in (None, False):
            data[bound.html_name] = value if isinstance(value, list) else str(value)
    return {**data, **{form.add_prefix(name): value for name, value in changes.items()}}


def again(model, pk, form_class, data, **options):
    """The row is read anew when the form is posted."""
    return form_class(data, instance=model.objects.get(pk=pk), **options)


@pytest.fixture
def product():
    return Product.objects.create(name="lamp", price=5, stock=3)


def test_what_was_shown_is_compared(product):
    mine = sent(ProductForm(instance=product), name="mine")
    theirs = again(Product, product.pk, ProductForm, sent(ProductForm(instance=product), stock="9"))
    theirs.save()
    form = again(Product, product.pk, ProductForm, mine)
    assert form.is_valid(), form.errors
    with pytest.raises(StaleObject) as caught:
        form.save()
    form.add_conflict(caught.value)
    assert form.conflict.fields["stock"].theirs == 9
    print(form.as_div())
    print(form.conflict_rows)
    second = again(Product, product.pk, ProductForm, sent(form))
    assert second.is_valid(), second.errors
    second.save()
    assert Product.objects.values("name", "stock", "version").get() == {
        "name": "mine",
        "stock": 9,
        "version": 3,
    }
