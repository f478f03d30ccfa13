import json

import pytest

from experiments.selection.__main__ import main


@pytest.mark.slow
def test_the_command_writes_results_and_a_page_and_runs_nothing_twice(tmp_path):
    asked = ["--data", "digits", "--steps", "20", "--seeds", "0", "1", "--noise", "0.3", "--out", str(tmp_path)]
    main([*asked, "--table", str(tmp_path / "page.md")])
    files = sorted(tmp_path.glob("*.json"))
    assert [file.name for file in files] == ["digits-seed0.json", "digits-seed1.json"]
    record = json.loads(files[1].read_text())
    assert record["command"] == "python -m experiments.selection --seeds 1 --noise 0.3 --steps 20 --data digits"
    assert "| 0.3 | emergent, resonance |" in (tmp_path / "page.md").read_text()
    before = files[0].stat().st_mtime_ns
    main(asked)
    assert files[0].stat().st_mtime_ns == before
