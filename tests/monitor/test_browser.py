"""The monitor in a real browser, under a strict Content-Security-Policy."""

import os
import time
from pathlib import Path

import pytest

from tests.monitor import scene
from tests.monitor.conftest import PAGE

browsers = pytest.importorskip("shop.tests.browser", exc_type=Exception)

pytestmark = pytest.mark.django_db(transaction=True)

SHOTS = os.environ.get("DBLOCK_SHOTS")


@pytest.fixture
def site(settings, live_server):
    settings.MIDDLEWARE = [
        "tests.monitor.policy.StrictPolicy",
        *settings.MIDDLEWARE,
        "django.middleware.csrf.CsrfViewMiddleware",
    ]
    return live_server.url


@pytest.fixture(scope="module")
def chromium():
    with browsers.browser("", width=1280, height=1000) as found:
        yield found


@pytest.fixture
def browser(chromium, site, root):
    chromium.site = site
    chromium.open("/static/django_dblock/monitor.css")
    chromium.driver.delete_all_cookies()
    chromium.driver.add_cookie({"name": "sessionid", "value": root.cookies["sessionid"].value})
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


def dark(browser, on):
    value = "dark" if on else "light"
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": value}]},
    )


def shoot(browser, name):
    if SHOTS:
        height = browser.driver.execute_script("return document.documentElement.scrollHeight")
        browser.resize(1280, min(height, 1700))
        (Path(SHOTS) / name).write_bytes(browser.driver.get_screenshot_as_png())
        browser.resize(1280, 1000)


def test_shots(browser, stage):
    found = scene.busy(stage)
    scene.leases(stage.observer)
    scene.requests()
    time.sleep(float(os.environ.get("DBLOCK_SHOTS_WAIT", "0")))
    browser.open(PAGE)
    for on in (False, True):
        dark(browser, on)
        shoot(browser, f"monitor-{'dark' if on else 'light'}.png")
    dark(browser, False)
    pid = found["gunicorn"].info.backend_pid
    browser.leave(lambda: browser.find(f"#dblock-end-{pid}").click())
    shoot(browser, "monitor-end.png")
    browser.open(PAGE + "release/?lease=0:nightly-sync")
    shoot(browser, "monitor-release.png")
