"""What the notebook on adapters says, with few steps."""

import pytest

from tests.examples.run import run

SMALL = {"LEARN": 120, "TUNE": 60, "ROWS": 40}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    asked = {
        "runs": "runs",
        "before": "before",
        "cost": "cost",
        "goals": "goals",
        "spectrum": "sal.spectrum()._asdict()",
    }
    return run("character_lora", tmp_path_factory.mktemp("lora"), SMALL, asked)


def test_both_begin_at_the_same_losses_and_learn_code(found) -> None:
    manual, code = found["before"]
    for losses in found["runs"].values():
        assert losses[0] == [manual, code]
        assert losses[-1][1] < code - 0.04


def test_plain_adapters_forget_the_manual(found) -> None:
    assert found["runs"]["LoRA"][-1][0] > found["before"][0] + 0.05


def test_with_sal_less_is_lost_at_the_same_loss_on_code(found) -> None:
    assert found["goals"][1] < found["goals"][0] < found["before"][1]
    for ours, theirs in zip(found["cost"]["LoRA with SAL"], found["cost"]["LoRA"], strict=True):
        assert ours < 0.8 * theirs


def test_something_is_held(found) -> None:
    assert found["spectrum"]["volatile"] < 50
