"""The browser of the tests: skipped where there is none, unless it has to be there."""

import os
import shutil

import pytest

from experiments.browser import Browser, browser

__all__ = ["Browser", "look", "need"]


def need():
    """Skip the test where there is no browser; fail it where there has to be one."""
    found = (shutil.which("chromium") or shutil.which("google-chrome")) and shutil.which("chromedriver")
    if not found:
        reason = "Chromium and chromedriver are not installed"
        (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(reason)


def look():
    """A browser, for a fixture to yield."""
    need()
    with browser() as window:
        yield window
