"""The frame of a page, in a real browser."""

import socket
import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest

from sal_page import Section, render
from tests.browser import look

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def window():
    yield from look()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    line = go.Figure(go.Scatter(x=[0, 1, 2], y=[1, 3, 2], name=HOSTILE))
    bars = go.Figure(go.Bar(x=["a", HOSTILE[:12]], y=[1, 2]), layout={"height": 200})
    sections = [Section(HOSTILE, HOSTILE, (line, bars)), Section("Words", "alone", wide=True)]
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(render("A page", HOSTILE, sections, script="window.after = 1"), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [400, 1400])
def test_every_figure_is_drawn_and_nothing_is_asked_of_a_network(window, page, width):
    window.goto(page, width)
    assert all(window.figures())
    assert len(window.figures()) == 2
    assert window.cut_off() == []
    assert window.errors() == []
    assert window.requests() == []
    assert window.ask("return window.after") == 1


def test_texts_never_become_markup(window, page):
    window.goto(page)
    assert window.ask("return document.title") == "A page"
    assert window.ask("return document.querySelectorAll('main img').length") == 0
    assert window.ask("return document.querySelector('h2').textContent") == HOSTILE


def test_no_button_gives_the_figures_away(window, page):
    """Plotly's own bar has one that sends them to a service."""
    window.goto(page)
    assert window.ask("return document.querySelectorAll('.js-plotly-plot').length") > 0
    assert window.ask("return document.querySelectorAll('.modebar-btn').length") == 0


def test_what_is_not_the_page_s_own_neither_runs_nor_is_asked_for(window, page, tmp_path):
    """Should markup get in all the same: the policy stands behind the escaping."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        away = f"<img src=http://127.0.0.1:{server.getsockname()[1]}/x onerror=\"document.title='taken'\">"
        bad = f"<main><script>document.title = 'taken'</script>{away}"
        (tmp_path / "bad.html").write_text(page.read_text().replace("<main>", bad))
        window.goto(tmp_path / "bad.html")
        assert all(window.figures())
        assert window.ask("return document.title") == "A page"
        with pytest.raises(TimeoutError):
            server.accept()
    window.requests()  # tells of the one that was stopped as well
    assert len(window.errors()) >= 3


def test_it_follows_the_reader_s_theme_and_the_button(window, page):
    ink = "return getComputedStyle(document.querySelector('.figure text')).fill"
    seen = {}
    for theme in ("light", "dark"):
        window.goto(page, theme=theme)
        assert window.ask("return document.documentElement.dataset.theme") == theme
        seen[theme] = window.ask(ink)
    assert seen["light"] != seen["dark"]
    window.ask("document.getElementById('theme').click()")
    window.wait()
    assert window.ask(ink) == seen["light"]


def test_errors_in_the_browser_are_reported(window, tmp_path):
    """The judge itself: a page that asks a network, fails and does not fit is found out."""
    wide = '<h2 style="white-space: nowrap">' + "very " * 200 + "</h2>"
    bad = "<script>undefined_name()</script><img src='http://127.0.0.1:9/x.png'><div class='figure'></div>"
    (tmp_path / "bad.html").write_text(f"<!doctype html><body>{wide}{bad}</body>")
    window.goto(tmp_path / "bad.html", 400)
    assert window.figures() == [0]
    assert any("px wide" in cut for cut in window.cut_off())
    assert any("undefined_name" in error for error in window.errors())
    assert window.requests() == ["http://127.0.0.1:9/x.png"]


def test_it_loads_neither_package_nor_torch():
    others = ("torch", "sal_lightning", "safi_agent", "langchain_core")
    code = f"import sys, sal_page; print([m for m in {others} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
