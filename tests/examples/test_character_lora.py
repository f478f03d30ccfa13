"""What the notebook on adapters says, with few steps."""

import pytest

from tests.examples.run import in_a_fork

pytestmark = pytest.mark.slow

SMALL = {"LEARN": 120, "TUNE": 160, "ROWS": 40}


def small(folder):
    asked = {
        "runs": "runs",
        "before": "before",
        "cost": "cost",
        "goals": "goals",
        "spectrum": "sal.spectrum()._asdict()",
    }
    return in_a_fork("character_lora", folder, SMALL, asked)


def both_begin_at_the_same_losses_and_learn_code(found) -> None:
    manual, code = found["before"]
    for losses in found["runs"].values():
        assert losses[0] == [manual, code]
        assert losses[-1][1] < code - 0.04


def plain_adapters_forget_the_manual(found) -> None:
    assert found["runs"]["LoRA"][-1][0] > found["before"][0] + 0.05


def with_sal_less_is_lost_at_the_same_loss_on_code(found) -> None:
    assert found["goals"][1] < found["goals"][0] < found["before"][1]
    ours, theirs = (found["cost"][name][1] for name in ("LoRA with SAL", "LoRA"))  # half way the manual still gains
    assert ours < 0.5 * theirs


def something_is_held(found) -> None:
    assert found["spectrum"]["volatile"] < 70  # B is free


def test_what_it_says(tmp_path) -> None:
    found = small(tmp_path)  # one test, for one run: several workers would each have their own
    for check in (
        both_begin_at_the_same_losses_and_learn_code,
        plain_adapters_forget_the_manual,
        with_sal_less_is_lost_at_the_same_loss_on_code,
        something_is_held,
    ):
        check(found)
