import json
import math

import pytest
import torch

from experiments.continual.data import load
from experiments.continual.streams import make
from experiments.detection.__main__ import STEPS, main, turns
from experiments.detection.results import rotations

pytestmark = pytest.mark.slow


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
    assert len(curve["excess"]) == len(curve["shares"][0]) == 500 // curve["each"]
    assert sum(curve["shares"][task][10] for task in range(5)) == pytest.approx(1, abs=0.01)


def test_turns_are_those_of_the_pictures():
    tasks, x = make("rotated", load("digits"), 3).tasks, torch.zeros(1, 64)
    x[0, 28] = 1.0  # left of the middle
    first, second = (task.see(x).view(8, 8) for task in tasks[:2])
    at = torch.arange(8) - 3.5
    angles = [
        math.atan2(float((image.sum(1) * at).sum()), float((image.sum(0) * at).sum())) for image in (first, second)
    ]
    turned = abs(math.degrees(angles[1] - angles[0]))
    assert min(turned, 360 - turned) == pytest.approx(turns("digits", 3)[0], abs=12)
    assert len(turns("digits", 3)) == 19


def test_turns_that_were_not_found_are_named():
    said = rotations({"turns": [3.0, 90.0, 1.5, 20.0], "delays": [None, 3, None, 4]})
    assert said == "Rotated pictures: turns not found: 1.5°, 3°; the smallest that were: 20°, 90°.\n"
