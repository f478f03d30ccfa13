import json

import torch

from benchmarks.selection import candidates, main


def test_candidates_lie_about_as_many_directions_as_asked():
    x = torch.nn.functional.normalize(candidates(60, 256, 3, seed=0), dim=1)
    similar = x @ x.mT
    assert ((similar > 0.8) | (similar < 0.4)).all()
    assert len(torch.unique(similar > 0.8, dim=0)) == 3
    lone = torch.nn.functional.normalize(candidates(60, 256, 0, seed=0), dim=1)
    assert (lone @ lone.mT).fill_diagonal_(0).max() < 0.5


def test_the_command_writes_what_it_measured_and_fills_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    sizes = ["--candidates", "40", "--dimensions", "1024", "--rounds", "2"]
    main([*sizes, "--out", str(tmp_path / "cost.json"), "--table", str(page)])
    record = json.loads((tmp_path / "cost.json").read_text())
    assert [row["found"] for row in record["rows"]][:2] == [1, 10]
    assert record["rows"][-1]["found"] == 40
    assert all(len(row["seconds"]) == 2 for row in record["rows"])
    assert "40 candidates of 1024 dimensions" in page.read_text()
    assert "no two alike" in capsys.readouterr().out
