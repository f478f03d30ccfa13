"""The log that a script plays has of everything, and is the same from the same seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.audited import play


def told(log: Path) -> list[Any]:
    names = ("memoryKey", "turn", "willDecision", "auditStatus", "spiritScore", "drift", "conscienceLedger")
    return [[json.loads(line)[name] for name in names] for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_seed_gives_one_log_with_refusals_failures_and_drift(tmp_path: Path) -> None:
    play(tmp_path / "whole", f"sqlite:///{tmp_path}/whole.db", turns=140, seed=1)
    play(tmp_path / "again", f"sqlite:///{tmp_path}/again.db", turns=40, seed=1)
    found = told(tmp_path / "whole")
    assert found[:40] == told(tmp_path / "again")
    assert {row[2] for row in found} == {"approve", "violation"}
    assert {row[3] for row in found} == {"complete", "none", "failed"}
    assert max(row[5] or 0 for row in found[130:]) > 0.4
