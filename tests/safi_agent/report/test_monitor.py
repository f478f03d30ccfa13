"""What a run of W&B has, read back from its file."""

import builtins
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import wandb

from safi_agent.hooks import Alert
from safi_agent.report.monitor import SpiritMonitor, figures
from tests import offline_wandb
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.report.records import record


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):
        monkeypatch.setenv(name, value)
    with wandb.init(dir=tmp_path, project="p") as one:
        yield one


@pytest.mark.slow
def test_a_chains_turns_are_in_the_runs_file(make: Any, run: Any, tmp_path: Path) -> None:
    model = Fake(will=in_turn(approve(), VIOLATION, approve()), conscience=in_turn(ledger(), ledger(score=1), "{}"))
    safi = make(model, hooks=[SpiritMonitor()], audit_attempts=1)
    for prompt in "abcd":
        safi.invoke(prompt)
        safi.drain()
    safi.close()
    run.finish()
    records = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    rows = offline_wandb.history(tmp_path)
    assert [row["safi/turns"] for row in rows] == [1, 2, 3, 4]
    assert [row["safi/refusals"] for row in rows] == [0, 1, 1, 1]
    assert [row["safi/failed"] for row in rows] == [0, 0, 0, 1]
    assert [row.get("safi/spirit") for row in rows] == [r["spiritScore"] for r in records] == [7, None, 9, None]
    assert [row.get("safi/drift") for row in rows] == [r["drift"] for r in records]
    for row, kept in zip(rows, records, strict=True):
        mu = {name.removeprefix("safi/mu/"): mean for name, mean in row.items() if name.startswith("safi/mu/")}
        assert mu == (kept["mu"] if kept["auditStatus"] != "none" else {})
        assert ("safi/lag" in row) is (kept["auditStatus"] != "none")
        assert 0 <= row.get("safi/lag", 0) < 60


@pytest.mark.slow
def test_a_monitor_for_a_key_sees_no_other(make: Any, run: Any, tmp_path: Path) -> None:
    safi = make(Fake(), hooks=[SpiritMonitor(run, key="ward")])
    for key in ("ward", "desk", "ward"):
        safi.invoke("a", {"configurable": {"safi_key": key}})
        safi.drain()
    run.finish()
    rows = offline_wandb.history(tmp_path)
    assert [row["safi/ward/turns"] for row in rows] == [1, 2]
    assert all(name.startswith(("safi/ward/", "_")) for row in rows for name in row)


def test_turns_that_end_side_by_side_are_all_counted() -> None:
    class Run:
        rows: list[dict[str, float]]

        def __init__(self) -> None:
            self.rows = []

        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, row: dict[str, float]) -> None:
            self.rows.append(row)

    run = Run()
    monitor = SpiritMonitor(run)
    alert = Alert("turn", "t", (), {**record(1), "mu": {}})
    threads = [threading.Thread(target=lambda: [monitor(alert) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["safi/turns"] for row in run.rows] == list(range(1, 401))


def test_it_is_called_for_every_turn_and_other_hooks_are_not(make: Any) -> None:
    every: list[Alert] = []
    some: list[Alert] = []

    class Watch:
        every_turn = True

        def __call__(self, alert: Alert) -> None:
            every.append(alert)

    model = Fake(will=in_turn(approve(), VIOLATION, approve()), conscience=in_turn(ledger(), ledger(score=-1)))
    safi = make(model, hooks=[Watch(), some.append])
    for prompt in "abc":
        safi.invoke(prompt)
        safi.drain()
    assert [alert.kind for alert in every] == ["turn", "turn", "turn", "review", "drift"]
    assert [alert.kind for alert in some] == ["review", "drift"]


def test_a_run_that_fails_changes_neither_answers_nor_records(make: Any, tmp_path: Path) -> None:
    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, _: Any) -> None:
            raise RuntimeError("the run is over")

    safi = make(Fake(), hooks=[SpiritMonitor(Run())])
    assert safi.invoke("a").content == "An answer."
    assert safi.drain() == 1
    assert '"auditStatus": "complete"' in (tmp_path / "log.json").read_text()


def test_the_lag_is_from_the_prompt_to_now() -> None:
    asked = datetime(2026, 3, 1, 8, 0, 0, tzinfo=UTC)
    told = {**record(1), "mu": {"truth": 0.2}}
    assert figures(told, asked + timedelta(seconds=2.5)) == {"spirit": 7, "drift": 0.1, "mu/truth": 0.2, "lag": 2.5}
    assert figures({**told, "drift": None}, asked - timedelta(seconds=1)) == {"spirit": 7, "mu/truth": 0.2, "lag": 0}


def test_without_a_run_or_without_wandb_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"run: expected a W&B run, got none, and no run is active. Call wandb.init\(\) first"
    ):
        SpiritMonitor()
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'pip install "sal-lightning\[wandb\]"'):
        SpiritMonitor()
