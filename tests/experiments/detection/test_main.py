import json

import pytest

from experiments.detection.__main__ import STEPS, main


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(STEPS, "stationary", 420)
    monkeypatch.setitem(STEPS, "split-domain-fuzzy", 100)


def test_the_command_writes_results_a_page_and_a_figure(tmp_path):
    asked = ["--data", "digits", "--steps", "60", "--seeds", "0", "--out", str(tmp_path)]
    page = tmp_path / "page.md"
    main([*asked, "--sources", "split-domain", "stationary", "split-domain-fuzzy", "--table", str(page)])
    record = json.loads((tmp_path / "split-domain.json").read_text())
    command = "python -m experiments.detection --sources split-domain --seeds 0 --steps 60 --data digits"
    assert record["command"] == command
    assert (record["found"], record["changes"], record["auroc"]) == (4, 4, 1.0)
    assert "| split-domain | 300 | 4 | 4 | 1.0000 | 3 | 3 | 0 |" in page.read_text()
    assert page.with_name("detection.png").stat().st_size > 10_000
    curve = json.loads((tmp_path / "split-domain-fuzzy.json").read_text())["curve"]
    assert len(curve["excess"]) == len(curve["drift"]) == len(curve["shares"][0]) == 500
