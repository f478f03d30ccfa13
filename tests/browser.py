"""The browser of the tests: skipped where there is none, unless it has to be there."""

import os
import shutil

import pytest

from experiments.browser import Browser, browser

__all__ = ["Browser", "look"]


def look():
    """A browser, for a fixture to yield."""
    found = (shutil.which("chromium") or shutil.which("google-chrome")) and shutil.which("chromedriver")
    if not found:
        reason = "Chromium and chromedriver are not installed"
        (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(reason)
    with browser() as window:
        yield window
