from django import forms

from django_dblock import UNKNOWN, StaleObject, VersionedModelForm
from shop.models import Product


class QuantityForm(forms.Form):
    quantity = forms.IntegerField(min_value=1, max_value=99, initial=1)


class CheckoutForm(forms.Form):
    buyer = forms.CharField(max_length=100, label="Your name")


class StockForm(VersionedModelForm):
    """What the stock page changes, if it is still what the page showed.

    Attributes:
        both: why the stock that is proposed after a conflict is neither mine nor theirs.
    """

    both = ""

    class Meta:
        model = Product
        fields = ("price", "stock")

    def add_conflict(self, error: StaleObject) -> None:
        """As the package's; propose a stock with both changes in it.

        Who adds five to ten means five more. If three were sold meanwhile, fifteen would put them
        back on the shelf; twelve are there.
        """
        super().add_conflict(error)
        stock = self.conflict.fields["stock"]
        if self.conflict.deleted or not stock.conflicting or stock.original is UNKNOWN:
            return
        mine, theirs = stock.mine - stock.original, stock.theirs - stock.original
        both = max(stock.original + mine + theirs, 0)
        self.data[self.add_prefix("stock")] = str(both)
        self.both = (
            f"You changed it by {_signed(mine)}, others meanwhile by {_signed(theirs)}: {both} has "
            f"both. If you have counted what is there, enter that."
        )


def _signed(number: int) -> str:
    return f"{number:+d}".replace("-", "−")  # noqa: RUF001 - a minus, for people


class ProductForm(forms.ModelForm):
    """The body of a change through the API."""

    class Meta:
        model = Product
        fields = ("name", "description", "price", "stock")


class PurchaseForm(QuantityForm, CheckoutForm):
    """The body of a purchase through the API."""

    sku = forms.SlugField(max_length=64)


class PaymentForm(forms.Form):
    """What the buyer agrees to, by the page and through the API."""

    amount = forms.DecimalField(max_digits=12, decimal_places=2)
