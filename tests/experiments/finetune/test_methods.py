"""Methods change nothing before training, and then train what they add and nothing else."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.finetune.methods import METHODS, Start
from experiments.finetune.model import FineTuned, load, token_losses
from experiments.finetune.protocol import run, train
from experiments.finetune.settings import Scale, Settings
from sal_lightning.integrations.own_samples import own_samples
from tests.tiny_language_model import model_folder, text_folder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
ADDED = {"lora": 4, "lora-mlp": 4, "rslora": 4, "corda": 4, "osf": 0.5}  # methods that train added weights
STEPS = 12
ROWS = torch.randint(1, 200, (4, 16), generator=torch.Generator().manual_seed(0))


def start(folder: Path) -> Start:
    net, _ = load(model_folder(folder))
    return Start(FineTuned(net, lr=0.01, steps=STEPS), own_samples(net, 8, 16, batch_size=4, progress=False))


def parameters(net: nn.Module) -> Mapping[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


@torch.no_grad()
def logits(begin: Start) -> Tensor:
    return begin.model(ROWS).detach()


@pytest.mark.parametrize("name", ADDED)
def test_it_changes_nothing_at_first_then_learns_with_what_it_added(tmp_path: Path, name: str) -> None:
    begin = start(tmp_path)
    before = logits(begin)
    assert METHODS[name].prepare(begin, ADDED[name]) is None
    assert torch.allclose(logits(begin), before, atol=1e-6)
    assert all(module.training for module in begin.model.modules())
    prepared, loss = parameters(begin.model), token_losses(begin.model.net, ROWS).mean().item()
    learning = {name for name, p in begin.model.named_parameters() if p.requires_grad}
    train(begin.model, DataLoader([ROWS] * STEPS, batch_size=None), [], "cpu", "32-true")  # type: ignore[arg-type]
    moved = {name for name, p in begin.model.named_parameters() if not torch.equal(p, prepared[name])}
    assert moved == learning != set(prepared)
    assert token_losses(begin.model.net, ROWS).mean().item() < loss - 0.01
    assert not torch.allclose(logits(begin), before, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_does_not_move_has_the_measures_from_before(tmp_path: Path, name: str) -> None:
    model, texts = model_folder(tmp_path / "model"), text_folder(tmp_path / "texts")
    scale = Scale(context=16, batch=4, steps=2, samples=4, measured=4)
    settings = Settings("code", name, ADDED.get(name, 0.5), 0.0, 0, "model", scale)
    found = run(settings, model, texts, tmp_path / "cache")
    assert found.stages == [pytest.approx(found.before, abs=1e-5)]


def test_the_scale_of_rslora_falls_with_the_root_of_its_rank(tmp_path: Path) -> None:
    begin = start(tmp_path)
    METHODS["rslora"].prepare(begin, 4)
    assert {layer.scaling["default"] for layer in lora_layers(begin).values()} == {16 / 2}


def lora_layers(begin: Start) -> dict[str, LoraLayer]:
    return {name: m for name, m in begin.model.net.named_modules() if isinstance(m, LoraLayer)}


def test_corda_takes_the_part_of_a_weight_that_own_samples_use_least(tmp_path: Path) -> None:
    begin = start(tmp_path)
    net = begin.model.net
    with torch.no_grad():
        for layer in net.model.layers:  # inputs that use some directions more than others
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.copy_(0.7 ** torch.arange(16))
    weights = {name: m.weight.detach().clone() for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    inputs: dict[str, list[Tensor]] = {name: [] for name in weights}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, x, __, rows=rows: rows.append(x[0].flatten(0, 1)))
        for name, rows in inputs.items()
    ]
    with torch.no_grad():
        for text in begin.texts():
            net(input_ids=text)
    for hook in hooks:
        hook.remove()
    METHODS["corda"].prepare(begin, 4)
    layers = {name.removeprefix("base_model.model."): layer for name, layer in lora_layers(begin).items()}
    assert set(layers) == set(weights) - {"lm_head"}
    for name, layer in layers.items():
        part = layer.get_delta_weight("default").detach()
        assert torch.allclose(layer.get_base_layer().weight + part, weights[name], atol=1e-6)
        X = torch.cat(inputs[name]).T
        used = (part @ X).norm() ** 2 / (weights[name] @ X).norm() ** 2
        kept = part.norm() ** 2 / weights[name].norm() ** 2
        assert 0 < used < kept / 20, name


def test_osf_freezes_a_share_of_each_weights_directions(tmp_path: Path) -> None:
    begin = start(tmp_path)
    shapes = {n: m.weight.shape for n, m in begin.model.net.named_modules() if isinstance(m, nn.Linear)}
    METHODS["osf"].prepare(begin, 0.75)
    found = {n: len(p) for n, p in begin.model.net.named_parameters() if n.endswith("S_low")}
    assert len(found) == len(shapes) - 1  # not the head
    for name, left in found.items():
        layer = name.removeprefix("base_model.model.").partition(".osf_svd_params")[0]
        assert left == min(shapes[layer]) / 4
