"""The same runs from YAML."""

from pathlib import Path

import pytest

from experiments import provenance
from experiments.continual import cli
from experiments.continual.evaluation import TaskAccuracy
from experiments.continual.protocol import run

pytestmark = pytest.mark.slow

CONFIGS = sorted((provenance.ROOT / "configs" / "experiments").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cli"])


def arguments(config: Path, out: Path) -> list[str]:
    small = ["--data.data=digits", "--data.steps=2", "--model.width=16", "--trainer.log_every_n_steps=1"]
    return ["fit", f"--config={config}", *small, f"--trainer.logger.init_args.save_dir={out}"]


def test_there_is_a_config_for_each_published_stream() -> None:
    assert {c.stem for c in CONFIGS} >= {f"{s}-sal" for s in ("split-task", "split-domain", "split-class", "permuted")}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_config_runs(config: Path, tmp_path: Path) -> None:
    made = cli.main(arguments(config, tmp_path))
    (watch,) = (c for c in made.trainer.callbacks if isinstance(c, TaskAccuracy))
    assert len(watch.R) == len(made.datamodule.stream.tasks)
    assert any(type(c).__name__ == "SALCallback" for c in made.trainer.callbacks)
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "accuracy/average" in metrics.read_text().splitlines()[0]


def test_it_is_the_same_experiment(tmp_path: Path) -> None:
    config = next(c for c in CONFIGS if c.stem == "split-domain-sal")
    made = cli.main([*arguments(config, tmp_path), "--model.width=400"])
    (watch,) = (c for c in made.trainer.callbacks if isinstance(c, TaskAccuracy))
    assert watch.R == run("split-domain", "sal", seed=0, steps=2, data="digits").R
