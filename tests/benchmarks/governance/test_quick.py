"""The benchmark of governing runs against a real server, counts every call and audit, and writes its part of a page."""

import json
from pathlib import Path

import pytest
from openai import OpenAI

from benchmarks.governance import __main__ as governance
from benchmarks.governance import alone, peers, report
from benchmarks.governance.rounds import OURS, Level
from tests.safi_agent.postgres_server import binaries


@pytest.mark.slow
def test_quick_measures_all_of_ours_and_loses_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before <!-- governance quick --><!-- /governance quick --> after")
    governance.main(["--quick", "--answer-ms", "5", "--audit-ms", "5", "--out", str(tmp_path), "--table", str(page)])
    record = json.loads((tmp_path / "quick.json").read_text())
    assert [(r["who"], r["at_once"]) for r in record["rows"]] == [(who, n) for n in (1, 10) for who in OURS]
    calls = {r["who"]: r["calls"] for r in record["rows"]}
    assert calls == {"bare": 1, "twice": 2, "chain": 2, "agent": 1, "middleware": 2}
    assert all(r["turns"] == 20 for r in record["rows"])
    assert all(0 < r["p50"] <= r["p99"] for r in record["rows"])
    assert (record["answers"], record["lost"]) == (2 * (1 + 20 + 10 + 20), 0)
    assert page.read_text().startswith("before")
    assert "SAFi middleware" in page.read_text()


class Bare:
    """Stands for a process with one contender, which asks the model and does nothing else."""

    def __init__(self, python: str, module: str, url: str, folder: Path) -> None:
        self.client, self.contenders = OpenAI(base_url=f"{url}/bare/v1", api_key="none", max_retries=0), ["bare"]

    def lap(self, who: str, level: Level) -> dict[str, object]:
        for _ in range(level.turns):
            self.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Why?"}])
        done = {"latencies": [1.0] * level.turns, "seconds": 1.0, "cpu_seconds": 1.0}
        return done | {"audited": 0, "settle_seconds": 0.0}

    def close(self) -> None:
        self.client.close()


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_a_row_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> str:
        raise peers.MissingError("not installed: no such wheel")

    monkeypatch.setattr("benchmarks.governance.rounds.python_of", refuse)
    monkeypatch.setattr("benchmarks.governance.rounds.Runner", Bare)
    flags = ["--at-once", "1", "--rounds", "1", "--peers", "nemo", "--answer-ms", "0", "--audit-ms", "0"]
    governance.main([*flags, "--out", str(tmp_path)])
    assert "| NeMo Guardrails |  | not installed: no such wheel |" in capsys.readouterr().out


@pytest.mark.slow
def test_turns_per_second_and_memory_count_their_audits(tmp_path: Path) -> None:
    governance.main(["--turns-per-second", "30", "--out", str(tmp_path)])
    fast = json.loads((tmp_path / "turns-per-second.json").read_text())
    assert fast["lost"] == 0
    assert fast["turns_per_second"]["answers_per_s"] >= fast["turns_per_second"]["audited_per_s"] > 0
    governance.main(["--memory", "30", "--out", str(tmp_path)])
    kept = json.loads((tmp_path / "memory.json").read_text())["memory"]
    assert [done for done, _ in kept["resident"]] == list(range(3, 31, 3))
    assert kept["half"] == kept["resident"][4][1]
    assert kept["lost"] == 0


@pytest.mark.slow
def test_the_cost_of_signing_is_measured_on_logs_that_are_signed(tmp_path: Path) -> None:
    governance.main(["--signing", "10", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "signing.json").read_text())
    one, together = record["signing"]["rows"]
    assert (record["lost"], one["writes"]) == (0, 10)
    assert 1 <= together["writes"] <= 10
    assert all(0 < row["signing_cpu_ms"] < row["turn_cpu_ms"] for row in (one, together))


@pytest.mark.slow
def test_workers_audit_every_turn_once(tmp_path: Path) -> None:
    pytest.importorskip("procrastinate")
    binaries()
    page = tmp_path / "page.md"
    page.write_text("<!-- governance workers --><!-- /governance workers -->")
    flags = ["--workers", "1", "2", "--turns", "8", "--rounds", "1", "--audit-ms", "5"]
    governance.main([*flags, "--out", str(tmp_path), "--table", str(page)])
    record = json.loads((tmp_path / "workers.json").read_text())
    assert [(row["audit_ms"], row["count"]) for row in record["workers"]] == [(5, 1), (5, 2), (0, 1), (0, 2)]
    assert all(row["per_s"] > 0 and row["worker_cpu_ms"] > 0 and row["server_cpu_ms"] > 0 for row in record["workers"])
    assert (record["answers"], record["lost"], record["repeated"]) == (4 * 8, 0, 0)
    assert "| 5 | 2 |" in page.read_text()


def test_an_audit_that_is_missing_is_counted(tmp_path: Path) -> None:
    with alone.governed(tmp_path) as safi:
        safi.invoke("One?")
        safi.invoke("Two?")
        safi.drain(None)
    store, log = tmp_path / "safi.db", tmp_path / "log.json"
    assert alone.lost(store, log, 2) == 0
    assert alone.lost(store, log, 3) == 1
    log.write_text(log.read_text().splitlines()[0] + "\n")
    assert alone.lost(store, log, 2) == 1


def test_slower_names_the_pair_the_level_and_the_ratio() -> None:
    def row(who: str, calls: float, *p50: float) -> dict[str, object]:
        return {"who": who, "at_once": 10, "calls": calls, "rounds_p50": list(p50)}

    rows = [row("chain", 2, 4, 9, 6), row("nemo", 2, 8, 6, 3), row("guardrails-ai", 3, 1, 1, 1)]
    assert report.slower(rows) == ["chain / nemo at 10: × 1.50"]
    assert report.slower([row("chain", 2, 1, 2, 3), row("nemo", 2, 2, 3, 4)]) == []


@pytest.mark.slow
def test_tracing_is_measured_beside_the_same_turns_without_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- governance tracing --><!-- /governance tracing -->")
    flags = ["--tracing", "10", "--rounds", "1", "--answer-ms", "1", "--audit-ms", "1"]
    governance.main([*flags, "--out", str(tmp_path), "--table", str(page)])
    record = json.loads((tmp_path / "tracing.json").read_text())
    assert [(r["who"], r["at_once"]) for r in record["tracing"]] == [
        ("chain", 1),
        ("chain", 10),
        ("instant", 16),
    ]
    assert all(0 < r["cpu"][way] < 1000 for r in record["tracing"] for way in ("without", "sampled", "traces", "all"))
    assert (record["answers"], record["lost"]) == (3 * 4 * 10, 0)
    assert "| model of 0 ms in the same process | 16 |" in page.read_text()
