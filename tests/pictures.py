"""A report in a real browser: how the tests start it, and the two pictures of the README.

``python tests/pictures.py RUN [FOLDER]`` (or ``make pictures RUN=…``) writes the report of a finished run and takes
``report.png`` (a position opened in its document) and ``report-curves.png`` (scaling, or training without a law) at
1280 pixels into FOLDER, docs/images unless given. Needs chromium and chromedriver (Debian's packages chromium and
chromium-driver) and selenium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage", "disable-extensions", "window-size=1280,900",
    "force-color-profile=srgb", "hide-scrollbars",
)  # fmt: skip


@contextmanager
def browser() -> Iterator[Any]:
    """A headless chromium with a profile of its own; its logs tell errors and requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = BROWSER or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.set_page_load_timeout(120)
            driver.set_script_timeout(120)
            yield driver
        finally:
            driver.quit()


def size(driver: Any, width: int, height: int = 900, scale: float = 1) -> None:
    """A window, or a phone's screen below 500 pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def scroll_to(driver: Any, css: str) -> None:
    """Put an element at the top, below the page's header."""
    driver.execute_script("document.querySelector(arguments[0]).scrollIntoView({block: 'start'})", css)


def open_best(driver: Any) -> None:
    """Open the position with most sets of completions; of those where the last gained on the first, an early one."""
    driver.execute_script(
        """const sets = (p) => Object.values(p.completions);
        const right = (own) => own.filter((c) => c.outcome === "right").length / own.length;
        const rank = (p) => (sets(p).length ? 10 * sets(p).length + right(sets(p).at(-1)) - right(sets(p)[0]) : -1);
        const late = (p) => Math.abs(p.token - 60) / 500;
        const all = DATA.documents.flatMap((one, i) => one.positions.map((p) => [i, p.token, rank(p) - late(p)]));
        const best = all.sort((a, b) => b[2] - a[2])[0];
        if (!best) return;
        document.getElementById("document").value = best[0];
        openDocument(best[0]);
        focusToken(best[1], false);
        openPosition(best[1]);"""
    )


def main(run: str, folder: str = "docs/images") -> None:
    """Take the README's pictures."""
    from forethink.report.collect import collect
    from forethink.report.page import render

    if BROWSER is None or DRIVER is None:
        sys.exit("no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, browser() as driver:
        page = Path(place) / "report.html"
        page.write_text(render(collect([Path(run)])), encoding="utf-8")
        size(driver, 1280, 1100, 1.5)
        driver.get(page.as_uri())
        open_best(driver)
        curves = "#scaling" if driver.find_elements("css selector", "#scaling .curve") else "#training"
        for name, css in (("report.png", "#documents .legend"), ("report-curves.png", curves)):
            scroll_to(driver, css)
            driver.execute_script("scrollBy(0, 12)")  # nothing of what is above it shows below the header
            driver.save_screenshot(str(target / name))
            print(f"done: {target / name}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
