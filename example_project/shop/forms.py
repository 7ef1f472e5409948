from django import forms

from shop.models import Product


class QuantityForm(forms.Form):
    quantity = forms.IntegerField(min_value=1, max_value=99, initial=1)


class CheckoutForm(forms.Form):
    buyer = forms.CharField(max_length=100, label="Your name")


class StockForm(forms.ModelForm):
    class Meta:
        model = Product
        fields = ("price", "stock")


class PurchaseForm(QuantityForm, CheckoutForm):
    """The body of a purchase through the API."""

    sku = forms.SlugField(max_length=64)
