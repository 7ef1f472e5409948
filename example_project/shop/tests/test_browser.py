"""Two people, two browsers, one product."""

from contextlib import ExitStack

from django.contrib.auth import get_user_model
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import Client, modify_settings, tag
from selenium.webdriver.common.keys import Keys

from shop.models import Product
from shop.tests.browser import Browser, browser
from shop.tests.helpers import product


@tag("browser")
@modify_settings(MIDDLEWARE={"append": "shop.tests.browser.StrictPolicy"})
class TwoBrowsers(StaticLiveServerTestCase):
    """In real ones, under a strict policy, and the console stays silent."""

    def setUp(self) -> None:
        self.open = self.enterContext(ExitStack())
        self.bell = product(stock=10)

    def staff(self, name: str) -> Browser:
        """Somebody signed in, in a browser of their own."""
        client = Client()
        client.force_login(get_user_model().objects.create_superuser(name))
        found = self.open.enter_context(browser(self.live_server_url))
        found.sign_in(client.cookies["sessionid"].value)
        return found

    def saved(self) -> dict[str, str]:
        bell = Product.objects.get()
        return {"name": bell.name, "price": str(bell.price), "stock": str(bell.stock)}

    def test_the_second_clerk_sees_whose_is_what_and_decides_field_by_field(self) -> None:
        ann, ben = self.staff("ann"), self.staff("ben")
        for each in (ann, ben):
            each.open("/stock/bell/")
        ann.type("#id_price", "12.00")
        ann.type("#id_stock", "20")
        ann.leave(lambda: ann.press(Keys.ENTER))
        assert "Bell: 20 in stock." in ann.text()
        ben.type("#id_price", "11.00")
        ben.type("#id_stock", "15")
        ben.leave(lambda: ben.press(Keys.ENTER))
        assert self.saved() == {"name": "Bell", "price": "12.00", "stock": "20"}
        assert "Nothing was saved" in ben.text("[role=alert]")
        price, stock = ben.all("fieldset dl")
        assert price.text.split("\n")[1::2] == ["9.50", "11.00", "12.00"]
        assert stock.text.split("\n")[1::2] == ["10", "15", "20"]

        # With the keyboard alone: theirs for the price, mine for the stock, save.
        assert ben.focused == ben.find("h1")
        ben.tab_to("[name=version_choice_price]")
        ben.press(Keys.ARROW_DOWN)
        ben.tab_to("[name=version_choice_stock]")
        ben.tab_to("form.conflict button")
        ben.leave(lambda: ben.press(Keys.ENTER))
        assert "Bell: 25 in stock." in ben.text()
        assert self.saved() == {"name": "Bell", "price": "12.00", "stock": "25"}
        assert [each.complaints() for each in (ann, ben)] == [[], []]
