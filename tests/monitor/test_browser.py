"""The monitor in a real browser, under a strict Content-Security-Policy.

With ``DBLOCK_SHOTS`` set to a folder, the pictures of the documentation are taken into it.
"""

import os
import time
from pathlib import Path

import pytest
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.test.testcases import LiveServerThread
from shop.tests import browser as browsers

from tests.helpers import observe
from tests.monitor import axe, scene
from tests.monitor.conftest import PAGE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

DESKTOP, PHONE = (1280, 1000), (390, 844)
SHOTS = os.environ.get("DBLOCK_SHOTS")


@pytest.fixture
def site(settings, transactional_db):
    """A server of this test's own: pytest-django's reads the middlewares once, before all tests."""
    settings.MIDDLEWARE = [
        "tests.monitor.policy.StrictPolicy",
        *settings.MIDDLEWARE,
        "django.middleware.csrf.CsrfViewMiddleware",
    ]
    server = LiveServerThread("127.0.0.1", StaticFilesHandler)
    server.daemon = True
    server.start()
    server.is_ready.wait()
    assert not server.error, server.error
    yield f"http://127.0.0.1:{server.port}"
    server.terminate()


@pytest.fixture(scope="module")
def chromium():
    with browsers.browser("", width=DESKTOP[0], height=DESKTOP[1]) as found:
        found.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        yield found


@pytest.fixture
def browser(chromium, site, root):
    """Signed in; at the end the console must be silent."""
    chromium.site = site
    chromium.resize(*DESKTOP)
    chromium.open("/static/django_dblock/monitor.css")  # cookies are set for the site that is open
    chromium.driver.delete_all_cookies()
    chromium.driver.add_cookie({"name": "sessionid", "value": root.cookies["sessionid"].value})
    chromium.complaints()
    yield chromium
    said = chromium.complaints()
    chromium.open("/static/django_dblock/monitor.css")  # asks nothing any more
    assert said == []


@pytest.fixture
def without_scripts(browser):
    set_scripts(browser, on=False)
    yield browser
    set_scripts(browser, on=True)


def set_scripts(browser, *, on):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not on})


def theme(browser, name):
    features = [{"name": "prefers-color-scheme", "value": name}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def run(browser, script):
    return browser.driver.execute_script(script)


def text_of(browser, css):
    return run(browser, f"return document.querySelector({css!r})?.textContent ?? ''")


def until_text(browser, css, text):
    observe.until(lambda: text in text_of(browser, css), text)


def shoot(browser, name, height=None):
    if not SHOTS:
        return
    whole = run(browser, "return document.documentElement.scrollHeight")
    browser.resize(DESKTOP[0], min(height or whole, whole))
    (Path(SHOTS) / name).write_bytes(browser.driver.get_screenshot_as_png())
    browser.resize(*DESKTOP)


@pytest.fixture
def busy(stage):
    found = scene.busy(stage)
    scene.leases(stage.observer)
    scene.requests()
    return found


class TestLive:
    def test_page_updates_without_a_reload(self, browser, stage):
        browser.open(PAGE + "?refresh=2")
        run(browser, "window.sameAsBefore = true")
        assert "Nothing is waiting." in browser.text("#dblock-live")
        stage.hold(stage.session("shop"), ("inventory", "sku-1"))
        stage.want(stage.session("celery"), "inventory", "sku-1")
        until_text(browser, ".dblock-graph", "celery")
        assert browser.text("#dblock-pulse") == "Live"
        assert run(browser, "return window.sameAsBefore")

    def test_screen_reader_hears_changes_but_not_ages(self, browser, stage):
        browser.open(PAGE + "?refresh=2")
        assert browser.find("#dblock-status").get_attribute("role") == "status"
        stage.hold(stage.session("shop"), ("inventory", "sku-1"))
        until_text(browser, "#dblock-status", "sessions with locks: 1")
        run(
            browser,
            "window.changes = 0; new MutationObserver(() => window.changes++).observe("
            "document.getElementById('dblock-status'), {childList: true, characterData: true})",
        )
        self.until_refreshed(browser)
        assert run(browser, "return window.changes") == 0

    def test_refresh_keeps_focus_open_queries_and_scroll(self, browser, busy):
        browser.open(PAGE + "?refresh=2")
        pid = busy["gunicorn"].info.backend_pid
        run(browser, f"document.getElementById('dblock-query-{pid}').open = true")
        run(browser, f"document.getElementById('dblock-end-{pid}').focus()")
        run(browser, "window.scrollTo(0, 300)")
        self.until_refreshed(browser)
        assert run(browser, "return document.activeElement.id") == f"dblock-end-{pid}"
        assert run(browser, f"return document.getElementById('dblock-query-{pid}').open")
        assert run(browser, "return window.scrollY") == 300
        run(browser, f"document.querySelector('#dblock-query-{pid} summary').focus()")
        self.until_refreshed(browser)
        assert run(browser, "return document.activeElement.tagName") == "SUMMARY"

    def test_lost_focus_moves_to_the_live_part(self, browser, stage):
        session = stage.session("shop")
        stage.hold(session, ("inventory", "sku-1"))
        browser.open(PAGE + "?refresh=2")
        run(browser, f"document.getElementById('dblock-end-{session.info.backend_pid}').focus()")
        session.execute("COMMIT")
        until_text(browser, "#dblock-live", "No advisory lock is held.")
        assert run(browser, "return document.activeElement.id") == "dblock-live"

    def test_selected_text_is_not_replaced(self, browser, stage):
        browser.open(PAGE + "?refresh=2")
        run(browser, "getSelection().selectAllChildren(document.getElementById('dblock-waits'))")
        run(browser, "window.marked = document.getElementById('dblock-waits')")
        self.until_asked(browser)
        assert run(browser, "return window.marked.isConnected")
        run(browser, "getSelection().removeAllRanges()")
        self.until_refreshed(browser)

    def test_hidden_tab_pauses(self, browser):
        browser.open(PAGE + "?refresh=5")  # longer than the last look takes
        run(browser, "Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        until_text(browser, "#dblock-pulse", "Paused")
        asked = self.asked(browser)
        run(
            browser,
            "Object.defineProperty(document, 'hidden', {value: false});"
            "document.dispatchEvent(new Event('visibilitychange'))",
        )
        until_text(browser, "#dblock-pulse", "Live")
        assert self.asked(browser) == asked + 1

    def test_missing_response_is_shown_and_retried(self, browser):
        browser.open(PAGE + "?refresh=2")
        run(browser, "window.theirs = fetch; window.fetch = async () => { throw new Error(); }")
        until_text(browser, "#dblock-pulse", "No response.")
        assert "No response." in run(
            browser, "return document.getElementById('dblock-status').textContent"
        )
        run(
            browser,
            "window.asked = 0; window.fetch = async () => { window.asked++; return new"
            " Response('', {status: 500}); }",
        )
        observe.until(lambda: run(browser, "return window.asked") > 1, "it is asked again")
        assert "No response." in text_of(browser, "#dblock-pulse")
        run(browser, "window.fetch = window.theirs")
        until_text(browser, "#dblock-pulse", "Live")
        assert "waiting: 0" in text_of(browser, "#dblock-status")

    def test_signed_out_user_is_informed(self, browser):
        browser.open(PAGE + "?refresh=2")
        browser.driver.delete_all_cookies()
        until_text(browser, "#dblock-pulse", "Signed out.")
        assert "Log in" not in browser.text("#dblock-live")

    def test_refresh_that_is_off_asks_nothing(self, browser):
        browser.open(PAGE)
        browser.tab_to("#dblock-refresh-0")
        browser.leave(lambda: browser.press(browsers.Keys.ENTER))
        assert browser.all("script[src*=monitor]") == []
        assert browser.text("#dblock-pulse") == "Refresh now"
        browser.leave(lambda: browser.find("#dblock-pulse a").click())

    def asked(self, browser):
        return run(
            browser,
            "return performance.getEntriesByType('resource')"
            ".filter((each) => each.name.includes('fragment=1')).length",
        )

    def until_asked(self, browser):
        before = self.asked(browser)
        observe.until(lambda: self.asked(browser) > before, "the page has asked")

    def until_refreshed(self, browser):
        run(browser, "window.old = document.getElementById('dblock-counts')")
        observe.until(lambda: not run(browser, "return window.old.isConnected"), "it is new")


class TestWithoutJavaScript:
    def test_page_reloads_without_javascript(self, without_scripts, stage):
        browser = without_scripts
        browser.open(PAGE + "?refresh=2")
        stage.hold(stage.session("shop"), ("inventory", "sku-1"))
        observe.until(lambda: "inventory:sku-1" in browser.driver.page_source, "it is loaded anew")
        assert browser.driver.current_url.endswith(PAGE + "?refresh=2")

    def test_backend_is_ended_without_javascript(self, without_scripts, stage):
        browser = without_scripts
        session = stage.session("shop")
        stage.hold(session, ("inventory", "sku-1"))
        browser.open(PAGE + "?refresh=0")
        browser.leave(lambda: browser.find(f"#dblock-end-{session.info.backend_pid}").click())
        browser.leave(lambda: browser.find(".dblock-danger").click())
        assert "is being ended" in browser.text(".messagelist")


def test_backend_can_be_ended_by_keyboard_alone(browser, stage):
    """To the holder, to the question, back, again, and yes."""
    session = stage.session("shop")
    stage.hold(session, ("inventory", "sku-1"))
    stage.want(stage.session("celery"), "inventory", "sku-1")
    pid = session.info.backend_pid
    browser.open(PAGE)
    browser.tab_to("#dblock-sheet")
    browser.tab_to(f"#dblock-end-{pid}")
    browser.leave(lambda: browser.press(browsers.Keys.ENTER))
    browser.tab_to(".cancel-link")
    browser.leave(lambda: browser.press(browsers.Keys.ENTER))
    browser.tab_to(f"#dblock-end-blocker-{pid}")
    browser.leave(lambda: browser.press(browsers.Keys.ENTER))
    browser.tab_to(".dblock-danger")
    browser.leave(lambda: browser.press(browsers.Keys.ENTER))
    assert f"Backend {pid} is being ended." in browser.text(".messagelist")


def test_focus_is_visible(browser, busy):
    browser.open(PAGE)
    for css in ("#dblock-refresh-2", "#dblock-sheet", "a.dblock-act", "#dblock-words summary"):
        browser.tab_to(css)
        assert (
            run(browser, "return getComputedStyle(document.activeElement).outlineStyle") != "none"
        )


@pytest.mark.parametrize("name", ["light", "dark"])
def test_page_breaks_no_rule_of_accessibility(name, browser, busy):
    """Labels, names, order of headings, contrast: as axe-core knows them."""
    theme(browser, name)
    pid = busy["gunicorn"].info.backend_pid
    for path in (PAGE, PAGE + "?q=nothing&refresh=0", PAGE + "release/?lease=0:nightly-sync"):
        browser.open(path)
        assert axe.violations(browser.driver) == []
    browser.open(PAGE)
    run(browser, "document.getElementById('dblock-words').open = true")
    assert axe.violations(browser.driver) == []
    browser.leave(lambda: browser.find(f"#dblock-end-{pid}").click())
    assert axe.violations(browser.driver) == []
    theme(browser, "light")


def test_negative_twin_broken_rule_of_accessibility_is_found(browser):
    browser.open(PAGE)
    run(
        browser,
        "document.querySelector('label[for=dblock-q]').remove();"
        "document.getElementById('dblock-q').removeAttribute('placeholder')",
    )
    assert [each.partition(":")[0] for each in axe.violations(browser.driver)] == ["label"]


def test_negative_twin_foreign_content_is_blocked(browser):
    browser.open(PAGE)
    run(browser, "new Image().src = 'http://elsewhere.invalid/'")
    said = observe.until(browser.complaints, "Chromium complains")
    assert "Content Security Policy" in said[0]


def test_headings_are_ordered_with_one_h1(browser, busy):
    browser.open(PAGE)
    found = run(
        browser,
        "return [...document.querySelectorAll('main h1, main h2, main h3')]"
        ".map((each) => each.tagName)",
    )
    assert found == ["H1", "H2", "H2", "H2", "H2"]


class TestHistory:
    def test_history_is_drawn_and_kept_in_the_tab(self, browser, stage):
        browser.open(PAGE + "?refresh=2")
        stage.hold(stage.session("shop"), ("inventory", "sku-1"))
        stage.want(stage.session("celery"), "inventory", "sku-1")
        until_text(browser, "#dblock-history-text", "at most 1 advisory locks held, at most 1")
        points = "return document.querySelector('polyline.dblock-history-held').points.length"
        before = run(browser, points)
        assert before >= 2
        browser.open(PAGE + "?refresh=2")
        assert run(browser, points) > before, "the page was loaded again, the tab is the same"
        run(browser, "sessionStorage.setItem('dblock-history:default', '{not json')")
        browser.open(PAGE)
        assert run(browser, points) >= 1, "a value of somebody else's is no harm"

    def test_history_is_hidden_without_javascript(self, without_scripts):
        without_scripts.open(PAGE)
        assert not without_scripts.find("#dblock-history").is_displayed()


def test_breadcrumbs_lead_back(browser, busy, settings):
    settings.DBLOCK_DASHBOARD_URL = "https://grafana.example.org/d/dblock"
    browser.open(PAGE)
    crumbs = " ".join(browser.text(".breadcrumbs").replace("\u203a", " ").split())
    assert crumbs == "Home Database locks Lock monitor"
    dashboards = browser.find("a.dblock-dashboards").get_attribute("href")
    assert dashboards == "https://grafana.example.org/d/dblock"
    browser.leave(lambda: browser.find("a.dblock-act").click())
    crumbs = " ".join(browser.text(".breadcrumbs").replace("\u203a", " ").split())
    assert crumbs == "Home Database locks Lock monitor End a backend"
    browser.leave(lambda: browser.find(".breadcrumbs a[href*=lockmonitor]").click())
    assert browser.text("#dblock-waits") == "Who waits behind whom"


@pytest.mark.parametrize("model", ["fencedlock", "idempotencykey"])
def test_change_lists_fit_the_screen(model, browser, busy, stage):
    scene.lease(stage.observer, "account:settlement:2026-11-28:vienna", owner="w" * 200)
    browser.open(f"/admin/django_dblock/{model}/")
    shoot(browser, f"list-{model}.png", 700)
    box = "document.querySelector('.results')"
    assert run(browser, f"return {box}.scrollWidth - {box}.clientWidth") <= 0


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_page_fits_the_screen(size, browser, busy):
    browser.resize(*size)
    browser.open(PAGE)
    assert browser.overflow == 0
    browser.leave(lambda: browser.find("a.dblock-act").click())
    assert browser.overflow == 0


def test_words_of_the_picture_stay_in_their_boxes(browser, busy):
    browser.open(PAGE)
    over = run(
        browser,
        """
        return [...document.querySelectorAll('.dblock-shape text')].filter((text) =>
            text.getBoundingClientRect().right >
            text.parentElement.querySelector('rect').getBoundingClientRect().right
        ).map((text) => text.textContent)
    """,
    )
    assert over == []


def test_admin_theme_switch_turns_the_page_dark(browser, busy):
    """Not only what the system prefers."""
    browser.open(PAGE)
    light = run(
        browser, "return getComputedStyle(document.querySelector('.dblock-holder rect')).fill"
    )
    run(browser, "document.documentElement.dataset.theme = 'dark'")
    dark = run(
        browser, "return getComputedStyle(document.querySelector('.dblock-holder rect')).fill"
    )
    assert light != dark


def test_screenshots_for_the_docs(browser, busy, stage):
    """They are looked at, and shown in the documentation."""
    if SHOTS:
        time.sleep(float(os.environ.get("DBLOCK_SHOTS_AGE", "0")))  # of those who wait
        stage.observer.execute("TRUNCATE django_dblock_fencedlock, django_dblock_fencedticket")
        scene.leases(stage.observer)
    for name in ("light", "dark"):
        theme(browser, name)
        browser.open(PAGE)
        shoot(browser, f"monitor-{name}.png", 1180)
        assert browser.find(".dblock-graph").is_displayed()
    theme(browser, "light")
    run(browser, "document.querySelector('[aria-labelledby=dblock-waits]').remove()")
    shoot(browser, "monitor-tables.png")
    browser.open(PAGE)
    pid = busy["gunicorn"].info.backend_pid
    browser.leave(lambda: browser.find(f"#dblock-end-{pid}").click())
    shoot(browser, "monitor-end.png", 520)
