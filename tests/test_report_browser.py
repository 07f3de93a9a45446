"""The report in a real browser: no error, no request, mouse and keyboard, hostile text, two widths.

Needs Debian's packages chromium and chromium-driver and selenium from PyPI; without them it is skipped.
``FORETHINK_SCREENSHOTS=DIR`` keeps the pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forethink.report.collect import collect
from forethink.report.page import render
from pictures import BROWSER, DRIVER, open_best, size
from pictures import browser as start
from report_run import write_large
from test_report import HOSTILE, write_run

pytest.importorskip("selenium", reason="selenium is not installed (pip install selenium)")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start() as driver:
        yield driver


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
        "overview", "documents", "training", "accuracy", "scaling", "patterns", "configuration",
    }  # fmt: skip
    find(opened, "#text .tok.seen")[0].click()
    assert [line for line in opened.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {page.as_uri()}
    loaded = "return performance.getEntries().filter(e => e.entryType === 'resource').map(e => e.name)"
    assert opened.execute_script(loaded) == []


def test_a_click_opens_a_position_with_its_completions(opened: Any) -> None:
    find(opened, "#text .tok.seen")[0].click()
    panel = find(opened, "#panel")[0].text
    heads = [one.text.replace("\n", " ") for one in find(opened, "#panel .side > h4")]
    assert heads == ["eval-start 1 of 1 right", "eval-trained 1 of 6 right"]
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


def test_hostile_names_in_figures_and_tables_are_text(opened: Any) -> None:
    """Opening lines and warnings hold the model's and the user's own characters."""
    shown = opened.execute_script("return document.getElementById('main').textContent")
    assert not set(shown) & set("\x00\x07\x1b\x7f\u202e\u2066\u200b\ufeff\u2028")
    assert opened.execute_script("return document.querySelectorAll('main img, main script, main iframe').length") == 0
    assert find(opened, "#warnings .warn") and find(opened, "#nav .alarm")[0].text == "Warnings (1)"


@pytest.fixture(scope="module")
def large(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of a run as large as a demonstration's, open."""
    top = tmp_path_factory.mktemp("large")
    (top / "report.html").write_text(render(collect([write_large(top / "run")])), encoding="utf-8")
    size(browser, 1280)
    browser.get((top / "report.html").as_uri())
    return browser


def errors(browser: Any) -> list[Any]:
    return [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def test_before_and_after_stand_side_by_side_or_stacked(large: Any) -> None:
    corners = (
        "return [...document.querySelectorAll('#panel .side')].map(e => [e.getBoundingClientRect().x, e.offsetTop])"
    )
    for width, columns in ((1280, 2), (390, 1)):
        size(large, width)
        open_best(large)
        heads = [one.text.split()[0] for one in find(large, "#panel .side > h4")]
        assert heads == ["before", "step-120"]
        assert len(set(large.execute_script(corners))) == columns
        screenshot(large, f"sides-{width}.png")
    size(large, 1280)
    open_best(large)
    likely = [one.text for one in find(large, "#panel .side")[0].find_elements("css selector", ".likely")]
    assert len(likely) == 5 and likely[0].endswith("41.0 %")
    chip = next(one for one in find(large, "#panel .chips button") if one.text == "step-024")
    chip.click()
    assert [one.text.split()[0] for one in find(large, "#panel .side > h4")] == ["before", "step-024", "step-120"]
    assert chip.get_attribute("aria-pressed") == "true"
    chip.click()
    assert errors(large) == []


def test_curves_bands_and_reasons(large: Any) -> None:
    assert len(find(large, "#scaling .band")) == 9  # three splits against three axes
    assert len(find(large, "#scaling circle")) == 54
    assert "Not fitted" not in find(large, "#scaling")[0].text
    next(one for one in find(large, "#scaling .chips button") if one.text == "plain accuracy").click()
    assert not find(large, "#scaling .band") and len(find(large, "#scaling circle")) == 54
    assert "flat: there is no law to fit" in find(large, "#scaling")[0].text
    next(one for one in find(large, "#scaling .chips button") if one.text == "reasoning accuracy").click()
    assert len(find(large, "#patterns figure .row")) == 6 * 8
    assert "Do thoughts collapse? train" in find(large, "#patterns")[0].text
    assert errors(large) == []


def test_any_two_evaluations_are_compared(large: Any) -> None:
    assert len(find(large, "#pair option")) == 21
    table = "return document.querySelector('#pair').parentElement.nextElementSibling.textContent"
    first = large.execute_script(table)
    find(large, "#pair option")[0].click()
    assert large.execute_script(table) != first and find(large, "#pair option")[0].text == "step-006 less before"
    assert errors(large) == []


def test_every_section_fits_a_desk_and_a_phone(large: Any) -> None:
    for width in (1280, 390):
        size(large, width)
        assert large.execute_script("return document.documentElement.scrollWidth") <= width  # no sideways scrolling
        for name in ("overview", "documents", "training", "accuracy", "scaling", "patterns", "configuration"):
            large.execute_script("document.getElementById(arguments[0]).scrollIntoView()", name)
            assert screenshot(large, f"{name}-{width}.png") > 5_000
    size(large, 1280)


def test_themes_and_widths(opened: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(colour)
    for width in (1280, 390):
        size(opened, width)
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
