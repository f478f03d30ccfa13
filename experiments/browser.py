"""A headless browser that takes pictures of pages and checks their rendering."""

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE = 60.0  # seconds for a page to be drawn
LOCAL = ("file:", "data:", "blob:", "chrome:", "about:")
# Plotly draws in the next turn of the event loop; two frames later it is on the screen.
DRAWN = """
const done = arguments[arguments.length - 1];
requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100)));
"""
FIGURES = "return [...document.querySelectorAll('.figure')].map(f => f.querySelectorAll('svg.main-svg').length)"
CUT = """
const cut = [], root = document.documentElement, slack = 1.5;
if (root.scrollWidth > innerWidth) cut.push(`the page is ${root.scrollWidth} px wide`);
const outside = (box, frame) => box.width && (box.left < frame.left - slack || box.right > frame.right + slack
  || box.top < frame.top - slack || box.bottom > frame.bottom + slack);
for (const figure of document.querySelectorAll(".figure"))
  for (const text of figure.querySelectorAll("svg text"))
    if (text.textContent.trim() && outside(text.getBoundingClientRect(), figure.getBoundingClientRect()))
      cut.push(`a figure's ${text.textContent}`);
for (const part of document.querySelectorAll("h1, h2, p, button, table"))
  if (!part.closest(".scroll") && part.scrollWidth > part.clientWidth + slack && part.clientWidth)
    cut.push(part.textContent);
return cut;
"""
BOX = "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height};"


class Browser:
    """One window; ``goto`` shows a file in it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def goto(self, file: Path, width: int = 1400, theme: Literal["light", "dark"] = "light") -> None:
        """Load the page with a width and a theme, and wait until it is drawn."""
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get(file.resolve().as_uri())
        self.wait()

    def wait(self) -> None:
        """Wait until the page is drawn."""
        self.driver.execute_async_script(DRAWN)

    def ask(self, script: str) -> Any:
        """Run a script; returns its result."""
        return self.driver.execute_script(script)

    def figures(self) -> list[int]:
        """Number of drawings in each figure of the page; 0 if plotly drew none."""
        return list(self.ask(FIGURES))

    def cut_off(self) -> list[str]:
        """Texts that overflow their container."""
        return list(self.ask(CUT))

    def errors(self) -> list[str]:
        """Console errors since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """URLs outside this machine that were requested since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(LOCAL)]

    def picture(self, file: Path, selector: str = "body", height: int | None = None, scale: float = 1.0) -> None:
        """A PNG of the first element that matches the selector, whole or its first pixels."""
        box = self.ask(f"const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();{BOX}")
        clip = box | {"scale": scale, "height": min(box["height"], height or box["height"])}
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True}
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium with an empty profile.

    Raises:
        selenium.common.exceptions.WebDriverException: Chromium is not installed.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        # The installed driver, as selenium would try to download one.
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        driver.set_script_timeout(PATIENCE)
        try:
            yield Browser(driver)
        finally:
            driver.quit()
