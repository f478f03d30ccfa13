"""Pictures of pages."""

from pathlib import Path

import pytest
from PIL import Image

from experiments import screenshots
from tests.browser import need

pytestmark = pytest.mark.slow


def test_each_page_has_four_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need()
    style = "<style>:root { color-scheme: light dark } body { margin: 0 } p { width: 900px; height: 2000px }</style>"
    (tmp_path / "page.html").write_text(f"<!doctype html>{style}<p>Sealed.")
    screenshots.main([str(tmp_path / "page.html"), "--out", str(tmp_path / "out")])
    sizes, corners = {}, {}
    for file in (tmp_path / "out").iterdir():
        with Image.open(file) as picture:
            sizes[file.stem], corners[file.stem] = picture.size, picture.convert("L").getpixel((5, 500))
    assert sizes == {
        "page-1400-light": (1400, 1000),
        "page-1400-dark": (1400, 1000),
        "page-400-light": (400, 1800),
        "page-400-dark": (400, 1800),
    }
    assert corners["page-1400-light"] == 255
    assert corners["page-1400-dark"] < 60  # type: ignore[operator]
    wide = [line for line in capsys.readouterr().out.splitlines() if "px wide" in line]
    assert len(wide) == 2
