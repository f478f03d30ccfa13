"""Parts of networks, what setting one back changes, and a real run beside that of the networks experiment."""

import math
from pathlib import Path

import pytest
import torch

from experiments import anatomy
from experiments.continual.data import load
from experiments.networks import networks, rewinding, streams
from experiments.networks.protocol import Run, run
from experiments.networks.training import Learner

STEPS = 8


@pytest.fixture(scope="module")
def record():
    return rewinding.dissect("vit-patch4", 0, STEPS, "digits")


@pytest.mark.parametrize("network", rewinding.NAMES)
def test_each_parameter_belongs_to_one_part(network):
    net = networks.make(network, 8)
    found = rewinding.parts(net)
    names = [name for group in found.values() for name in group]
    assert len(names) == len(set(names))
    assert {name for name, _ in net.named_parameters()} <= set(names)
    assert "others" not in found


def test_parts_are_named_by_what_their_modules_are():
    found = rewinding.parts(networks.make("vit-patch4", 8))
    assert found["positions"] == ["position"]
    assert found["head"] == ["head.weight", "head.bias"]
    assert found["attention, in"][:2] == [f"encoder.layers.0.self_attn.in_proj_{of}" for of in ("weight", "bias")]
    assert found["attention, out"][0] == "encoder.layers.0.self_attn.out_proj.weight"
    assert found["feed-forward"][0] == "encoder.layers.0.linear1.weight"
    assert "encoder.norm.weight" in found["norms"]
    found = rewinding.parts(networks.make("convnet-separable", 8))
    assert found["running statistics"][:2] == ["2.running_mean", "2.running_var"]
    assert (found["convolutions, depthwise"][0], found["convolutions, pointwise"][0]) == ("4.weight", "7.weight")
    found = rewinding.parts(networks.make("gru", 8))
    assert found["recurrent, from states"] == ["cell.weight_hh_l0", "cell.bias_hh_l0"]


def test_only_the_part_named_is_set_back_and_the_network_ends_as_it_began():
    torch.manual_seed(0)
    learner = Learner("mlp", networks.make("mlp", 8))
    now = {name: tensor.clone() for name, tensor in learner.net.state_dict().items()}
    then = {name: torch.zeros_like(tensor) for name, tensor in now.items()}
    stream = streams.make("split-two", load("digits"), 0, 5, 32)
    groups = {"nothing": [], "head": ["4.weight", "4.bias"]}
    found = dict(rewinding.rewound(learner, then, groups, stream.old()[0], stream.new()))
    zeros = float((stream.old()[0].y == 0).double().mean())  # equal answers: the first class
    assert (found["head"]["old"], found["head"]["among_old"], found["head"]["new"]) == (zeros, zeros, 0)
    assert (
        found["nothing"]
        == {"weights": 0, "moved": 0} | rewinding.accuracy(learner, stream.old()[0], stream.new())._asdict()
    )
    assert all(torch.equal(now[name], tensor) for name, tensor in learner.net.state_dict().items())


def test_movement_is_that_of_all_tensors_together():
    now, then = {"a": torch.tensor([4.0]), "b": torch.tensor([0.0])}, {"a": torch.tensor([1.0]), "b": torch.tensor(4.0)}
    assert rewinding.movement(now, then, ["a", "b"]) == pytest.approx(5 / math.sqrt(17))


def test_accuracy_among_the_old_classes_leaves_the_answers_of_others_out():
    class Fixed(Learner):
        def answers(self, tests):
            return torch.tensor([[0.0, 1, 2], [1.0, 0, 2], [0.0, 1, 0]]), torch.tensor([1, 0, 0])

        def score(self, tests):
            return 0.25

    learner = Fixed("mlp", torch.nn.Identity())
    assert rewinding.accuracy(learner, None, None) == (0, pytest.approx(2 / 3), 0.25)


@pytest.mark.slow
def test_nothing_set_back_is_the_end_of_a_told_run_and_all_is_what_was_consolidated(record):
    told = run(Run("vit-patch4", "split-two", "told", 0, "digits", STEPS, rewinding.BATCH))
    assert [record["parts"]["nothing"][which] for which in ("old", "new")] == told["kept"]
    assert record["parts"]["all"]["old"] == told["learned"][0]
    assert record["parts"]["nothing"]["moved"] == 0 < record["parts"]["head"]["moved"]


@pytest.mark.slow
def test_the_record_has_each_parameter_and_its_part(record):
    net = networks.make("vit-patch4", 8)
    assert set(record["parameters"]) == {name for name, _ in net.named_parameters()}
    head = [record["parameters"][f"head.{of}"]["weights"] for of in ("weight", "bias")]
    assert record["parts"]["head"]["weights"] == sum(head) == 650
    assert record["parts"]["all"]["weights"] == sum(p.numel() for p in net.parameters())
    assert record["command"].startswith("python -m experiments.anatomy --networks vit-patch4 --seeds 0 --steps 8")


def test_the_command_files_a_record_and_fills_a_block_of_its_own(tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text("<!-- anatomy -->kept<!-- /anatomy -->\n")
    asked = f"--networks gru --data digits --steps 3 --out {out} --table {page}".split()
    anatomy.main(asked)
    first = page.read_text()
    (file,) = out.iterdir()
    assert file.name == "gru-split-two-digits-steps3-seed0.json"
    assert "<!-- anatomy -->kept<!-- /anatomy -->" in first
    assert "| gru | recurrent, from states | 49,536 | " in first.partition("<!-- anatomy-networks -->")[2]
    made = file.read_text()
    anatomy.main(asked)  # from the file
    assert (page.read_text(), file.read_text()) == (first, made)


def test_streams_are_those_of_the_mlp_alone(capsys) -> None:
    with pytest.raises(SystemExit):
        anatomy.parser().parse_args(["--networks", "gru", "--streams", "split-class"])
    assert "not allowed with argument --networks" in capsys.readouterr().err
