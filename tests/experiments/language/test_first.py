"""The first stage is trained once, and what is kept of it is what training gives."""

from pathlib import Path

import lightning as L
import pytest
import torch

from experiments.console import Ticker
from experiments.language.first import First, FirstStage, build
from experiments.language.stages import batches, losses, train
from experiments.language.text import split
from sal_lightning import SALCallback
from tests.experiments.language.common import DOMAINS, SCALE

pytestmark = pytest.mark.slow


def stage(cache: Path, seed: int = 0) -> FirstStage:
    return FirstStage(DOMAINS, SCALE, seed, cache)


def same(a: First, b: First) -> bool:
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights) and a.losses == b.losses


def test_what_is_kept_is_what_a_fresh_training_gives(tmp_path: Path) -> None:
    made, kept, fresh = stage(tmp_path).plain(), stage(tmp_path).plain(), stage(tmp_path / "other").plain()
    assert same(made, kept)
    assert same(kept, fresh)
    assert len(list(tmp_path.glob("*.pt"))) == 1


def test_what_is_kept_is_not_trained_again(tmp_path: Path) -> None:
    class Never(Ticker):
        def __init__(self) -> None: ...

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise AssertionError("trained again")

    stage(tmp_path).plain()
    stage(tmp_path)._replace(callbacks=[Never()]).plain()


def test_watched_in_vain_it_is_the_plain_one_and_the_same_at_any_strength(tmp_path: Path) -> None:
    watched, other = (stage(tmp_path).watched(strength) for strength in (0.5, 50.0))
    assert same(watched, stage(tmp_path).plain())
    assert same(watched, other)
    assert len(list(tmp_path.glob("*.pt"))) == 2
    assert watched.watched["layers"][0]["step"] == SCALE.steps[0]


def test_where_something_was_held_each_strength_has_its_own(tmp_path: Path) -> None:
    patchy = DOMAINS._replace(first=split("patchy", b"3.14159 26535 89793;" * 20 + b"the quick brown fox " * 180))
    held = stage(tmp_path)._replace(domains=patchy, scale=SCALE._replace(batch=1, steps=(70, 1, 1)))
    weak, strong = (held.watched(strength) for strength in (0.5, 50.0))
    assert not same(weak, held.plain())
    assert not same(weak, strong)
    assert same(weak, held.watched(0.5))


def test_from_what_was_kept_sal_goes_on_as_if_there_had_been_no_pause(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    model, whole = build(SCALE), SALCallback(consolidate_on=19)
    train(model, batches(DOMAINS.first, SCALE, 0, 0), [whole])
    train(model, batches(DOMAINS.second, SCALE, 0, 1), [whole])

    first, resumed = stage(tmp_path).watched(4.0), SALCallback(consolidate_on=19)
    again = build(SCALE)
    again.net.load_state_dict(first.weights)
    resumed.load_state_dict(first.watched)
    train(again, batches(DOMAINS.second, SCALE, 0, 1), [resumed])
    assert resumed.events == whole.events == [19]
    assert losses(again, DOMAINS, SCALE) == losses(model, DOMAINS, SCALE)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"scale": SCALE._replace(width=8)},
        {"scale": SCALE._replace(steps=(17, 8, 4))},
        {"domains": DOMAINS._replace(first=DOMAINS.second)},
        {"accelerator": "gpu"},
    ],
)
def test_its_name_changes_with_what_it_depends_on(other: dict[str, object], tmp_path: Path) -> None:
    before = stage(tmp_path)
    assert before._replace(**other).file("plain") != before.file("plain")  # type: ignore[arg-type]


def test_its_name_stays_with_the_later_stages(tmp_path: Path) -> None:
    before = stage(tmp_path)
    assert before._replace(scale=SCALE._replace(steps=(16, 1, 1))).file("plain") == before.file("plain")
    assert before.file("watched") != before.file("plain")
