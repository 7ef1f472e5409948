"""Two people, two browsers, one product."""

from django.contrib.auth import get_user_model
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import Client, modify_settings, tag

from shop.models import Product
from shop.purchase import buy
from shop.tests.browser import Browser, Keys, browser
from shop.tests.helpers import product

PHONE, DESKTOP = (390, 844), (1280, 900)


@tag("browser")
@modify_settings(MIDDLEWARE={"append": "shop.tests.browser.StrictPolicy"})
class TwoBrowsers(StaticLiveServerTestCase):
    """Under a strict policy, and the console stays silent."""

    ann: Browser
    ben: Browser

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.ann, cls.ben = (cls.enterClassContext(browser(cls.live_server_url)) for _ in range(2))

    def setUp(self) -> None:
        self.bell = product(stock=10)

    def both_open(self, address: str) -> tuple[Browser, Browser]:
        """Two of the staff open a page, each in a browser of their own."""
        for name, their in (("ann", self.ann), ("ben", self.ben)):
            client = Client()
            client.force_login(get_user_model().objects.create_superuser(name))
            their.sign_in(client.cookies["sessionid"].value)
            their.open(address)
        return self.ann, self.ben

    def tearDown(self) -> None:
        said = self.ann.complaints() + self.ben.complaints()
        assert not said, said

    def saved(self) -> tuple[str, str, int]:
        bell = Product.objects.get()
        return bell.name, str(bell.price), bell.stock

    def save_by_enter(self, who: Browser, **values: str) -> None:
        for name, value in values.items():
            who.type(f"#id_{name}", value)
        who.leave(lambda: who.press(Keys.ENTER))

    def test_the_second_clerk_sees_whose_is_what_and_decides_with_the_keyboard(self) -> None:
        ann, ben = self.both_open("/stock/bell/")
        self.save_by_enter(ann, price="12.00")
        assert "Bell: 10 in stock." in ann.text()
        buy("bell", 3, "Ada")
        self.save_by_enter(ben, price="11.00", stock="15")
        assert self.saved() == ("Bell", "12.00", 7)
        assert "othing was saved" in ben.text("[role=alert]"), ben.text()
        shown = [values.text.split("\n") for values in ben.all("fieldset dl")]
        assert [values[::2] for values in shown] == [["Original", "Mine", "Theirs"]] * 2
        assert [values[1::2] for values in shown] == [["9.50", "11.00", "12.00"], ["10", "15", "7"]]

        assert ben.focused == ben.find("h1")
        ben.tab_to("[name=version_choice_price]")
        ben.press(Keys.ARROW_DOWN)  # theirs
        ben.tab_to("#id_stock")
        ben.tab_to("form button")
        ben.leave(lambda: ben.press(Keys.ENTER))
        assert "Bell: 12 in stock." in ben.text()
        assert self.saved() == ("Bell", "12.00", 12)

    def test_the_conflict_fits_on_a_phone(self) -> None:
        ann, ben = self.both_open("/stock/bell/")
        self.save_by_enter(ann, price="12.00")
        self.save_by_enter(ben, price="11.00", stock="15")
        for size in (PHONE, DESKTOP):
            ben.resize(*size)
            self.addCleanup(ben.resize, *DESKTOP)
            assert ben.overflow == 0

    def test_leaving_it_changes_nothing(self) -> None:
        ann, ben = self.both_open("/stock/bell/")
        self.save_by_enter(ann, price="12.00")
        self.save_by_enter(ben, price="11.00")
        ben.tab_to("form a")
        ben.leave(lambda: ben.press(Keys.ENTER))
        assert self.saved() == ("Bell", "12.00", 10)

    def test_the_second_admin_sees_it_too(self) -> None:
        ann, ben = self.both_open(f"/admin/shop/product/{self.bell.pk}/change/")
        self.save_by_enter(ann, name="Gong")
        self.save_by_enter(ben, name="Ship's bell", price="11.00")
        assert self.saved() == ("Gong", "9.50", 10)
        assert "othing was saved" in ben.text()
        rows = [row.text for row in ben.all("main table tr")]
        assert any(
            all(word in row for word in ("Name", "Bell", "Ship's bell", "Gong")) for row in rows
        ), rows

        ben.tab_to("[name=version_choice_name]")
        ben.press(Keys.ARROW_DOWN)  # theirs
        ben.tab_to("[name=_save]")
        ben.leave(lambda: ben.press(Keys.ENTER))
        assert self.saved() == ("Gong", "11.00", 10)
