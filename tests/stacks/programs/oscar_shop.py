"""django-oscar: the last bells are sold under a lock, and a basket's order is placed once."""

import threading

from oscar import defaults

from tests.stacks import program

APPS = (
    "analytics.apps.AnalyticsConfig", "checkout.apps.CheckoutConfig",
    "address.apps.AddressConfig", "shipping.apps.ShippingConfig",
    "catalogue.apps.CatalogueConfig", "catalogue.reviews.apps.CatalogueReviewsConfig",
    "communication.apps.CommunicationConfig", "partner.apps.PartnerConfig",
    "basket.apps.BasketConfig", "payment.apps.PaymentConfig", "offer.apps.OfferConfig",
    "order.apps.OrderConfig", "customer.apps.CustomerConfig", "search.apps.SearchConfig",
    "voucher.apps.VoucherConfig", "wishlists.apps.WishlistsConfig",
    "dashboard.apps.DashboardConfig", "dashboard.reports.apps.ReportsDashboardConfig",
    "dashboard.users.apps.UsersDashboardConfig", "dashboard.orders.apps.OrdersDashboardConfig",
    "dashboard.catalogue.apps.CatalogueDashboardConfig",
    "dashboard.offers.apps.OffersDashboardConfig",
    "dashboard.partners.apps.PartnersDashboardConfig", "dashboard.pages.apps.PagesDashboardConfig",
    "dashboard.ranges.apps.RangesDashboardConfig", "dashboard.reviews.apps.ReviewsDashboardConfig",
    "dashboard.vouchers.apps.VouchersDashboardConfig",
    "dashboard.communications.apps.CommunicationsDashboardConfig",
    "dashboard.shipping.apps.ShippingDashboardConfig",
)  # fmt: skip
MADE_AT_ONCE = (
    "auth", "contenttypes", "flatpages", "sessions", "sites",
    *(app.split(".apps.")[0].rpartition(".")[2] for app in APPS),
)  # fmt: skip
BELLS, BUYERS = 3, 6

program.setup(
    "django.contrib.sites",
    "django.contrib.flatpages",
    "django.contrib.sessions",
    "oscar.config.Shop",
    *(f"oscar.apps.{app}" for app in APPS),
    "haystack",
    "treebeard",
    "widget_tweaks",
    "django_tables2",
    **{name: value for name, value in vars(defaults).items() if name.startswith("OSCAR_")},
    SITE_ID=1,
    MIGRATION_MODULES=dict.fromkeys(MADE_AT_ONCE),  # its 134 migrations take a minute
    HAYSTACK_CONNECTIONS={"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}},
)

from django.db import connection  # noqa: E402
from oscar.apps.partner.strategy import Selector  # noqa: E402
from oscar.apps.shipping.methods import Free  # noqa: E402
from oscar.core.loading import get_class, get_model  # noqa: E402

from django_dblock import advisory_lock, run_once  # noqa: E402

Basket, Order = get_model("basket", "Basket"), get_model("order", "Order")
Product, ProductClass = get_model("catalogue", "Product"), get_model("catalogue", "ProductClass")
Partner, StockRecord = get_model("partner", "Partner"), get_model("partner", "StockRecord")
OrderCreator = get_class("order.utils", "OrderCreator")
OrderTotalCalculator = get_class("checkout.calculators", "OrderTotalCalculator")


def bell(sku):
    kind, _ = ProductClass.objects.get_or_create(
        name="bells", defaults={"track_stock": True, "requires_shipping": False}
    )
    partner, _ = Partner.objects.get_or_create(name="foundry")
    product = Product.objects.create(title=sku, product_class=kind, structure="standalone")
    return StockRecord.objects.create(
        product=product, partner=partner, partner_sku=sku, price=10, num_in_stock=BELLS
    )


def basket_with(stock):
    basket = Basket.objects.create()
    basket.strategy = Selector().strategy()
    basket.add_product(stock.product, 1)
    return basket.pk


def is_available(pk):
    [line] = opened(pk).all_lines()
    permitted, _ = line.purchase_info.availability.is_purchase_permitted(1)
    return permitted


def opened(pk):
    basket = Basket.objects.get(pk=pk)
    basket.strategy = Selector().strategy()
    return basket


def place(pk):
    basket, shipping = opened(pk), Free()
    charge = shipping.calculate(basket)
    total = OrderTotalCalculator().calculate(basket, charge)
    order = OrderCreator().place_order(basket, total, shipping, charge)
    basket.submit()
    return order.number


def unlocked(stock, pk):
    permitted = is_available(pk)
    looked.wait()  # each has looked before any has bought
    if permitted:
        place(pk)


def locked(stock, pk):
    with advisory_lock("stock", stock.partner_sku):
        if is_available(pk):
            place(pk)


def sell(buy, sku):
    """Let all buyers buy at once; return how many bells are promised."""
    stock = bell(sku)
    baskets = [basket_with(stock) for _ in range(BUYERS)]
    in_threads(lambda pk: buy(stock, pk), baskets)
    stock.refresh_from_db()
    return stock.num_allocated


def in_threads(act, arguments):
    """Call the function in as many threads as there are arguments; return the results."""
    results, errors = [], []

    def run(argument):
        try:
            results.append(act(argument))
        except Exception as error:  # noqa: BLE001 - raised below, in the main thread
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[argument]) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


looked = threading.Barrier(BUYERS, timeout=60)
lost = sell(unlocked, "unlocked")
kept = sell(locked, "locked")

basket = basket_with(bell("once"))
numbers = in_threads(
    lambda pk: run_once("order", pk, work=lambda: place(pk), wait=30), [basket] * 4
)
try:
    place(basket)
    again = "placed"
except ValueError as error:
    again = str(error)

program.report(
    bells=BELLS,
    lost=lost,
    kept=kept,
    numbers=numbers,
    orders=Order.objects.filter(basket_id=basket).count(),
    again=again,
)
