"""Invariants of a log and its store after crashes: no turn is lost or repeated, and the order is kept."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safi_agent import assess
from safi_agent.log.key import find_key
from safi_agent.log.rotation import log_files
from safi_agent.log.verify import verify
from tests.safi_agent.fakes import THREE

ROWS = "SELECT id, status, logged, settled FROM safi_turns"
MEMORY = "SELECT key, mu FROM safi_memory"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in log_files(folder / "log.json") for line in file.read_text().splitlines()]


def answered(folder: Path) -> dict[str, str]:
    """Decisions by turn id, as the callers got them; a last line may be torn."""
    files = folder.glob("seen*")
    return dict(line.split() for file in files for line in file.read_text().splitlines() if line.count(" ") == 1)


def check(folder: Path, rows: Iterable[Iterable[Any]], memory: Mapping[str, str]) -> int:
    """Everything that must hold after recovery; how many turns there are."""
    seen = answered(folder)
    logged = records(folder)
    counts = Counter(record["turnId"] for record in logged)
    assert set(counts.values()) == {1}, "one line a turn"
    by_id = {record["turnId"]: record for record in logged}
    assert seen.keys() <= by_id.keys(), "every answer that was returned is in the log"
    kept = [tuple(row) for row in rows]
    assert {row[0] for row in kept} == by_id.keys()
    assert {row[1:] for row in kept} == {("done", 1, 1)}
    for key in {record["memoryKey"] for record in logged}:
        replay([record for record in logged if record["memoryKey"] == key], json.loads(memory[key]))
    assert all(by_id[i]["willDecision"] == decision for i, decision in seen.items())
    key = find_key(folder / "log.json")
    assert key
    assert verify(folder / "log.json", key).faults == (), "one chain, whoever wrote on it and died"
    return len(logged)


def replay(turns: list[dict[str, Any]], mu: dict[str, float]) -> None:
    """A key's lines are in order, and μ is what they give when they are gone through one by one."""
    assert [record["turn"] for record in turns] == list(range(1, len(turns) + 1))
    before: dict[str, float] = {}
    audits = 0
    for record in turns:
        if record["willDecision"] == "approve":
            assert record["auditStatus"] == "complete"
            found = assess(record["conscienceLedger"], THREE, before)
            before, audits = found.mu, audits + 1
            assert (record["spiritScore"], record["drift"]) == (found.score, found.drift)
        assert (record["mu"], record["muTurn"]) == (before, audits)
    assert mu == before
