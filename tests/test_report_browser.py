"""The report in a real browser: no error, no request, mouse and keyboard, hostile text, two widths.

Needs Debian's packages chromium and chromium-driver and selenium from PyPI; without them it is skipped.
``FORETHINK_SCREENSHOTS=DIR`` keeps the pictures.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forethink.report.collect import collect
from forethink.report.page import render
from test_report import HOSTILE, write_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = BROWSER or ""
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("report")
    texts = [text + "\\boxed{ sum}" for text in HOSTILE.values()]
    file = top / "report.html"
    run = write_run(top / "run", extra=texts, warnings=[HOSTILE["markup"]])
    file.write_text(render(collect([run])), encoding="utf-8")
    return file


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    select(browser, "held out")
    return browser


def find(browser: Any, css: str) -> list[Any]:
    return browser.find_elements("css selector", css)


def select(browser: Any, text: str) -> None:
    option = next(one for one in find(browser, "#document option") if text in one.text)
    option.click()


def press(browser: Any, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def screenshot(browser: Any, name: str) -> int:
    folder = os.environ.get("FORETHINK_SCREENSHOTS")
    data = browser.get_screenshot_as_png()
    if folder:
        (Path(folder) / name).write_bytes(data)
    return len(data)


def test_no_error_and_no_request(opened: Any, page: Path) -> None:
    log = [line for line in opened.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]
    assert log == []
    assert {one.get_attribute("id") for one in find(opened, "main > section")} == {
        "overview", "documents", "training", "accuracy", "configuration",
    }  # fmt: skip
    find(opened, "#text .tok.seen")[0].click()
    assert [line for line in opened.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {page.as_uri()}


def test_a_click_opens_a_position_with_its_completions(opened: Any) -> None:
    find(opened, "#text .tok.seen")[0].click()
    panel = find(opened, "#panel")[0].text
    assert "eval-start: 1 of 1 right" in panel and "eval-trained: 1 of 6 right" in panel
    assert "eval-start says" in panel and "plain arg-max" in panel
    assert find(opened, "#panel .card.right .answer")[0].text.replace("\u00a0", " ").strip() == "sum"


def test_the_keyboard_moves_and_opens(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('#text [tabindex=\"0\"]').focus()")
    at = lambda: opened.execute_script("return Number(document.activeElement.dataset.i)")  # noqa: E731
    assert at() == 1
    press(opened, Keys.ARROW_RIGHT)
    assert at() == 4
    press(opened, Keys.ARROW_LEFT, Keys.ENTER)
    assert at() == 1 and find(opened, "#panel h3")[0].text == "Position 1"
    press(opened, Keys.ARROW_RIGHT)  # an open panel goes along
    assert find(opened, "#panel h3")[0].text == "Position 4"
    press(opened, Keys.SHIFT + Keys.ARROW_RIGHT)
    assert at() == 5 and find(opened, "#panel h3")[0].text == "Token 5"
    press(opened, Keys.ESCAPE)
    assert find(opened, "#panel.empty") and at() == 5


def test_hostile_completions_show_as_text(opened: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    find(opened, "#text .tok.seen")[0].click()
    for whole in find(opened, "#panel .card details > summary"):  # a thought's broken bytes are read as U+FFFD;
        opened.execute_script("arguments[0].click()", whole)  # the bytes themselves are in the whole completion
    written = "return document.querySelectorAll('#panel .card details .quote').length"
    WebDriverWait(opened, 20).until(lambda browser: browser.execute_script(written) == 7)
    panel = opened.execute_script("return document.getElementById('panel').textContent")
    assert HOSTILE["markup"] in panel
    assert opened.execute_script("return window.hacked") is None
    assert not find(opened, "main img") and not find(opened, "main script")
    shown = set(opened.execute_script("return [...document.querySelectorAll('#panel .ctl')].map(e => e.textContent)"))
    assert {"U+202E", "U+2066", "U+200B", "U+FEFF", "U+2028", "NUL", "ESC", "DEL", "byte ED"} <= shown
    assert not set(panel) & set("\x00\x07\x1b\x7f\u202e\u2066\u200b\ufeff\u2028")
    assert HOSTILE["markup"] in opened.execute_script("return document.getElementById('overview').textContent")


def test_a_very_long_completion_is_folded(opened: Any) -> None:
    find(opened, "#text .tok.seen")[0].click()
    length = "return document.getElementById('panel').textContent.length"
    assert opened.execute_script(length) < 20_000
    more = next(one for one in find(opened, "#panel .more") if "100,000" in one.text)
    opened.execute_script("arguments[0].click()", more)
    assert opened.execute_script(length) > 100_000 and more.text == "show less"
    opened.execute_script("arguments[0].click()", more)
    assert opened.execute_script(length) < 20_000


def test_themes_and_widths(opened: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(colour)
    for width in (1280, 390):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width  # no sideways scrolling
        assert screenshot(opened, f"top-{width}.png") > 5_000
        opened.execute_script("document.getElementById('documents').scrollIntoView()")
        opened.execute_script("document.querySelector('#text .tok.seen').click()")
        assert screenshot(opened, f"position-{width}.png") > 5_000
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    find(opened, "#theme")[0].click()
    assert opened.execute_script(colour) != light
    assert screenshot(opened, "dark.png") > 5_000
    find(opened, "#theme")[0].click()
    assert opened.execute_script(colour) == light
