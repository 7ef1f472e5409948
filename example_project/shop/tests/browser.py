"""A real browser: Debian's Chromium without a window, driven by its own chromedriver."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.http import HttpRequest, HttpResponse

from shop.tests.absent import absent

try:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.remote.webelement import WebElement
    from selenium.webdriver.support.wait import WebDriverWait
except ImportError as error:
    raise absent("selenium is not installed") from error

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 20

# No script and no style but from files of the site; Chromium tells its console of all others.
POLICY = "default-src 'self'; img-src 'self' data:"


class StrictPolicy:
    """A middleware for these tests: the pages must work under a strict Content-Security-Policy."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response["Content-Security-Policy"] = POLICY
        return response


def need(program: str, package: str) -> str:
    if (found := shutil.which(program)) is None:
        raise absent(f"{program} is not installed (Debian package {package})")
    return found


class Browser:
    """One person at one machine."""

    def __init__(self, driver: webdriver.Chrome, site: str) -> None:
        self.driver = driver
        self.site = site

    def open(self, address: str) -> None:
        self.driver.get(self.site + address)

    def resize(self, width: int, height: int) -> None:
        """Show pages as on a screen of this size, which may be smaller than any window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the screen."""
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        return max(self.driver.execute_script(script), 0)

    def sign_in(self, session_key: str) -> None:
        self.open("/basket/")  # cookies are set for the site that is open
        self.driver.delete_all_cookies()
        self.driver.add_cookie({"name": "sessionid", "value": session_key})

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str = "body") -> str:
        return self.find(css).text

    def type(self, css: str, text: str) -> None:
        """Replace what stands in a field."""
        field = self.find(css)
        field.clear()
        field.send_keys(text)

    @property
    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def press(self, *keys: str) -> None:
        """Press keys where the focus is, also on a page that puts another element there now."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def tab_to(self, css: str) -> None:
        """Go on with the Tab key until it is there; no farther than once around the page."""
        for _ in range(100):
            if self.focused == self.find(css):  # a live page may have put another in its place
                return
            self.press(Keys.TAB)
        raise AssertionError(f"the Tab key does not come to {css}")

    def aim(self, css: str) -> Callable[[], None]:
        """Return what clicks where this is now, also while the page that comes next is awaited.

        The driver's own click waits for that page, which people don't.
        """
        box = self.find(css).rect
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}

        def click() -> None:
            for kind in ("mousePressed", "mouseReleased"):
                event = {"type": kind, "button": "left", "clickCount": 1, **where}
                self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

        return click

    def until(self, css: str) -> None:
        """Wait for a page that has this."""
        wait = WebDriverWait(self.driver, PATIENCE, ignored_exceptions=[WebDriverException])
        wait.until(lambda _: self.all(css) and self._loaded())

    def leave(self, act: Callable[[], None]) -> None:
        """Do what brings the next page, and wait until it is there."""
        page = self.find("html")
        act()
        WebDriverWait(self.driver, PATIENCE).until(lambda _: self._is_gone(page))

    def _is_gone(self, page: WebElement) -> bool:
        try:
            return self.find("html") != page and self._loaded()
        except Exception:  # noqa: BLE001 - between two pages there is none to ask
            return False

    def _loaded(self) -> bool:
        return self.driver.execute_script("return document.readyState") == "complete"

    def complaints(self) -> list[str]:
        """What stands in the console, but for a conflict's status and the admin's missing icon."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        known = ("409 (Conflict)", "/favicon.ico")
        return [message for message in said if not any(each in message for each in known)]


@contextmanager
def browser(
    site: str, *, width: int = 1100, height: int = 900, waits: bool = True
) -> Iterator[Browser]:
    """Start a browser with a profile of its own, for the time of the block.

    Args:
        waits: let whoever drives it wait for each page; else they can click while one is coming.
    """
    program, driver_program = need("chromium", "chromium"), need("chromedriver", "chromium-driver")
    with tempfile.TemporaryDirectory(prefix="shop-browser-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.page_load_strategy = "normal" if waits else "none"
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(driver_program))
        try:
            driver.set_page_load_timeout(PATIENCE)
            yield Browser(driver, site)
        finally:
            driver.quit()
