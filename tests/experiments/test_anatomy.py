"""What undoing a part of the weights' movement does: cases worked by hand, and a real run."""

from pathlib import Path

import pytest
import torch

from experiments import anatomy
from experiments.anatomy import undone, variants
from experiments.continual.protocol import run
from experiments.continual.streams import StreamName

pytestmark = pytest.mark.slow

STEPS = 15  # of each of five tasks: the last change is found


def test_what_moved_is_undone_along_directions_or_along_all_others() -> None:
    torch.manual_seed(0)
    now, then = torch.randn(2, 3, 5)
    U = torch.linalg.qr(torch.randn(5, 2)).Q
    held, elsewhere = (undone(now, then, U, held=which) for which in (True, False))
    torch.testing.assert_close(held @ U, then @ U)
    torch.testing.assert_close(elsewhere @ U, now @ U)
    torch.testing.assert_close(held + elsewhere, now + then)


def test_each_layer_is_undone_by_itself_and_moves_by_itself() -> None:
    now = {"a": torch.ones(1, 1), "b": torch.full((1, 1), 2.0)}
    then = {name: torch.zeros(1, 1) for name in now}
    found = {part: {name: float(w) for name, w in W.items()} for part, W in variants(now, then, {"a": torch.eye(1)})}
    assert found == {
        "nothing": {"a": 1, "b": 2},
        "a": {"a": 0, "b": 2},
        "a, held": {"a": 0, "b": 2},
        "a, elsewhere": {"a": 1, "b": 2},
        "all but a": {"a": 1, "b": 0},
        "all": {"a": 0, "b": 0},
    }


@pytest.mark.parametrize("stream", anatomy.STREAMS)
def test_with_nothing_undone_it_is_the_end_with_all_undone_as_it_was_before(stream: StreamName) -> None:
    record = anatomy.dissect(stream, 0, STEPS, "digits")
    assert any(
        record["accuracy"][f"{layer}, held"] != record["accuracy"]["nothing"] for layer in ("body.0", "body.2", "head")
    )
    R = run(stream, "sal", 0, STEPS, data="digits", every=STEPS).R
    assert record["accuracy"]["nothing"] == pytest.approx(R[-1])
    assert record["accuracy"]["all"] == pytest.approx([*(R[t][t] for t in range(len(R) - 1)), R[-2][-1]])
    assert {part.partition(",")[0] for part in record["accuracy"]} >= {"body.0", "body.2", "head"}


def test_before_anything_is_held_all_that_moved_moved_elsewhere() -> None:
    found = anatomy.dissect("split-class", 0, 4, "digits")["accuracy"]
    for layer in ("body.0", "body.2", "head"):
        assert found[f"{layer}, held"] == found["nothing"]
        assert found[f"{layer}, elsewhere"] == found[layer]


def test_the_command_resumes_and_fills_the_block_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    asked = f"--streams split-class --data digits --steps 12 --out {tmp_path / 'out'} --table {page}".split()
    anatomy.main(asked)
    first = page.read_text()
    assert "| head, held | 0." in first
    anatomy.main([*asked, "--steps", "4"])  # other runs in the folder do not enter
    assert page.read_text() != first
    anatomy.main(asked)
    assert page.read_text() == first
