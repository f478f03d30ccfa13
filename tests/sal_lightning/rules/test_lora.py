"""LoRA adapters: what they change for old inputs, ``B A x``, stays small, whatever they learn."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft")

from sal_lightning import CommunicationLayer, SALCallback  # noqa: E402
from sal_lightning.rules import lora  # noqa: E402
from sal_lightning.rules.directions import Directions  # noqa: E402
from sal_lightning.rules.lora import LoraARule, LoraBRule, moved_out, passed_on  # noqa: E402

INPUTS, OLD, OUTPUTS, RANK = 24, 10, 3, 4
FIRM = 1e5  # a strength at which what is held does not move


class Data:
    """Old inputs in a part of the space, new ones in all of it, and what the new ones should give."""

    def __init__(self) -> None:
        numbers = torch.Generator().manual_seed(0)
        self.U = torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=numbers))[0]
        self.numbers, self.target = numbers, torch.randn(OUTPUTS, INPUTS, generator=numbers) / INPUTS**0.5

    def old(self, n: int = 64, first: int = 0, size: int = OLD) -> Tensor:
        return torch.randn(n, size, generator=self.numbers) @ self.U[:, first : first + size].mT

    def new(self, n: int = 64) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, INPUTS, generator=self.numbers) @ self.U.mT
        return x, x @ self.target.mT


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 32), nn.Linear(32, OUTPUTS))


def adapted(base: nn.Module | None = None, **options: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(**({"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["0", "1"]} | options))
    return peft.get_peft_model(copy.deepcopy(base or network()), config)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def protected(model: nn.Module, strength: float = FIRM, **options: Any) -> tuple[CommunicationLayer, torch.optim.AdamW]:
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    settings = {"strength": strength, "pull": 0.0, "consolidate_on": None} | options
    return CommunicationLayer(model, optimizer, **settings), optimizer


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def news(data: Data, steps: int = 96) -> Iterator[tuple[Tensor, Tensor]]:
    return (data.new(32) for _ in range(steps))


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model.eval()(x)
    return y


def loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (answers(model, x) - y).square().mean().item()


def after(model: nn.Module, data: Data, x: Tensor, strength: float = FIRM) -> tuple[float, float]:
    """How far the answers to ``x`` moved, relative to their size, and the share of the new loss that is left."""
    before, (z, w) = answers(model, x), data.new(256)
    start = loss(model, z, w)
    comm, optimizer = protected(model, strength)
    comm.remember(data.old() for _ in range(8))
    assert torch.allclose(answers(model, x), before, atol=1e-6), "remember() changes no answer"
    learn(model, optimizer, news(data))
    comm.settle()
    return ((answers(model, x) - before).norm() / before.norm()).item(), loss(model, z, w) / start


# --- the two formulas ---


def test_a_is_moved_as_by_the_inverse_of_the_energy_up_to_a_factor() -> None:
    torch.manual_seed(0)
    U = torch.linalg.qr(torch.randn(1, 6, 2))[0]
    A, lam, rest, strength = torch.randn(1, 3, 6), torch.tensor([[5.0, 2.0]]), torch.tensor([0.5]), 0.7
    C = U @ torch.diag_embed(lam) @ U.mT + 0.5 * (torch.eye(6) - U @ U.mT)
    expected = (1 + strength * 0.5) * A @ torch.linalg.inv(torch.eye(6) + strength * C)
    assert torch.allclose(moved_out(A, U, lam, rest, strength), expected, atol=1e-5)
    # Directions with less energy than the rest are not moved towards.
    assert torch.equal(moved_out(A, U, torch.zeros(1, 2), rest, strength), A)


def test_what_a_passes_on_is_the_second_moment_of_its_output() -> None:
    torch.manual_seed(0)
    U = torch.linalg.qr(torch.randn(1, 6, 2))[0]
    lam, rest = torch.tensor([[5.0, 2.0]]), torch.tensor([0.5])
    C = U @ torch.diag_embed(lam) @ U.mT + 0.5 * (torch.eye(6) - U @ U.mT)
    A = torch.randn(1, 3, 6)
    found = passed_on(A, Directions(U, lam, rest))
    expected = A @ C @ A.mT * 3 / A.square().sum()
    assert torch.allclose(found.U @ torch.diag_embed(found.lam) @ found.U.mT, expected, atol=1e-5)
    assert torch.equal(passed_on(torch.zeros(1, 3, 6), Directions(U, lam, rest)).lam, torch.zeros(1, 3))


def test_a_case_by_hand() -> None:
    """All old inputs lie along the first of two axes: λ = 2, λ̄ = 0, and with α = 1.5 a quarter of A is left there."""
    strength = 1.5 / lora.FIRM
    model = adapted(nn.Sequential(nn.Linear(2, 2)), target_modules=["0"], r=1, lora_alpha=1)
    A = model.base_model.model[0].lora_A["default"].weight
    with torch.no_grad():
        A.copy_(torch.tensor([[4.0, 4.0]]))
    comm, _ = protected(model, strength)
    comm.remember(torch.randn(8, 1) * torch.tensor([1.0, 0.0]) for _ in range(4))
    assert torch.allclose(A, torch.tensor([[1.0, 4.0]]), atol=1e-5)
    (b,) = (rule for rule in comm.rules if isinstance(rule, LoraBRule))
    assert b.memory is not None
    # A C Aᵀ / (‖A‖²/r) = 1 · 2 · 1 / 17
    assert b.memory.directions.lam.item() == pytest.approx(2 / 17, rel=1e-4)


# --- what it is for ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_dropout": 0.2}, {"lora_bias": True}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_old_answers_stay_and_new_ones_are_learned(options: dict[str, Any]) -> None:
    data = Data()
    moved, left = after(adapted(**options), data, data.old())
    assert moved < 1e-3
    assert left < 0.7
    data = Data()  # the same without it
    model = adapted(**options)
    x, optimizer = data.old(), torch.optim.AdamW(trained(model), lr=1e-2)
    before = answers(model, x)
    learn(model, optimizer, news(data))
    assert (answers(model, x) - before).norm() > 0.5 * before.norm()


@pytest.mark.slow
def test_without_moving_a_out_the_same_hold_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraARule, "move_out", lambda self: None)
    data = Data()
    moved, left = after(adapted(), data, data.old())
    assert moved < 1e-3
    assert left > 0.9


@pytest.mark.slow
def test_without_moving_a_out_a_free_b_changes_old_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraARule, "move_out", lambda self: None)
    monkeypatch.setattr(LoraBRule, "consolidate", lambda self: None)
    data = Data()
    moved, left = after(adapted(), data, data.old())
    assert moved > 0.5
    assert left < 0.7


def test_b_a_x_stays_zero_for_old_x_and_not_for_others() -> None:
    data, model = Data(), adapted()
    after(model, data, data.old())
    layer = model.base_model.model[0]
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    old, others = data.old() @ A.mT @ B.mT, data.old(first=OLD) @ A.mT @ B.mT
    assert old.norm() < 1e-5 * others.norm()


# --- adapters that were trained before ---


@pytest.mark.slow
def test_a_trained_adapter_keeps_its_answers_and_learns_on() -> None:
    data, model = Data(), adapted()
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    learn(model, optimizer, ((x, x.flip(1)[:, :OUTPUTS]) for x in (data.old(32) for _ in range(64))))
    A = model.base_model.model[0].lora_A["default"].weight
    before = A.detach().clone()
    x = data.old()
    moved, left = after(model, data, x)
    assert moved < 0.03
    assert left < 0.9
    along = data.U[:, :OLD]
    assert torch.allclose(A @ along, before @ along, atol=1e-4)
    assert not torch.allclose(A, before, atol=1e-2)


def test_rows_whose_column_of_b_is_zero_are_moved_though_others_are_trained() -> None:
    data, model = Data(), adapted()
    layer = model.base_model.model[0]
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        B[:, 0] = 1.0
    before = A.detach().clone()
    comm, _ = protected(model)
    comm.remember(data.old() for _ in range(8))
    assert torch.equal(A[0], before[0])
    assert (A[1:] @ data.U[:, :OLD]).norm() < 1e-3 * A[1:].norm()


@pytest.mark.slow
def test_a_second_adapter_knows_what_the_first_has_been_given() -> None:
    data, callback = Data(), SALCallback(strength=FIRM, pull=0)
    model = adapted()
    callback.remember(model, (data.old() for _ in range(8)))
    first = range(OLD, OLD + 5)  # the first adapter learns along five more directions
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    callback.begin(model, [optimizer])
    callback.expect(measured=False)
    learn(model, optimizer, ((x, x.flip(1)[:, :OUTPUTS]) for x in (data.old(32, OLD, 5) for _ in range(64))))
    callback.end()
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    for name, p in model.named_parameters():
        p.requires_grad_(".second." in name)
    x, y = data.old(), data.old(64, first.start, len(first))
    before = answers(model, x), answers(model, y)
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    callback.begin(model, [optimizer])
    callback.expect(measured=False)
    z, w = data.new(256)
    start = loss(model, z, w)
    learn(model, optimizer, news(data))
    callback.end()
    assert loss(model, z, w) < 0.9 * start
    for inputs, known in zip((x, y), before, strict=True):
        assert (answers(model, inputs) - known).norm() < 1e-2 * known.norm()


# --- where the base weight cannot be read, and other settings ---


class Quantized(nn.Linear):
    """A Linear whose weight is stored as whole numbers, as in QLoRA."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.scale = layer.weight.detach().abs().max() / 127
        rounded = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


@pytest.mark.slow
def test_a_quantized_base_is_kept() -> None:
    data = Data()
    moved, left = after(adapted(nn.Sequential(*map(Quantized, network()))), data, data.old())
    assert moved < 1e-3
    assert left < 0.7


@pytest.mark.slow
def test_adapters_of_convolutions() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3))
    model = adapted(base, target_modules=["0"])
    old, new = [torch.randn(16, 1, 6, 6).repeat(1, 3, 1, 1) for _ in range(8)], torch.randn(16, 3, 6, 6)
    before, target = answers(model, old[0]), torch.randn(16, 2, 4, 4)
    comm, optimizer = protected(model)
    comm.remember(old)
    start = loss(model, new, target)
    learn(model, optimizer, ((new, target) for _ in range(64)))
    comm.settle()
    assert (answers(model, old[0]) - before).norm() < 1e-3 * before.norm()
    assert loss(model, new, target) < 0.99 * start


def test_the_identity_that_dora_multiplies_is_no_input() -> None:
    data, windows = Data(), []
    inputs = [data.old() for _ in range(8)]
    for options in ({}, {"use_dora": True}):
        comm, _ = protected(adapted(**options))
        comm.remember(inputs)
        rule = next(rule for rule in comm.rules if isinstance(rule, LoraARule))
        assert rule.memory is not None
        windows.append(rule.memory.directions)
    assert torch.allclose(windows[0].lam, windows[1].lam, rtol=1e-4)
    assert windows[1].rest.item() < 1e-4


@pytest.mark.slow
def test_dora_keeps_the_scale_of_outputs_with_a_pull_too() -> None:
    data, model = Data(), adapted(use_dora=True)
    x = data.old()
    before = answers(model, x)
    comm, optimizer = protected(model, pull=5.0)
    comm.remember(data.old() for _ in range(8))
    norms = model.base_model.model[0].lora_magnitude_vector["default"].weight.detach().clone()
    learn(model, optimizer, news(data))
    comm.settle()
    assert (answers(model, x) - before).norm() < 1e-3 * before.norm()
    changed = model.base_model.model[0].lora_magnitude_vector["default"].weight.detach()
    assert not torch.allclose(changed, norms, rtol=1e-3), "the magnitude follows a norm that changes"


def test_a_is_moved_once_between_remember_and_the_fit() -> None:
    data, model, callback = Data(), adapted(), SALCallback(strength=1.0)
    A = model.base_model.model[0].lora_A["default"].weight
    callback.remember(model, (data.old() for _ in range(8)))
    moved = A.detach().clone()
    for _ in range(2):
        callback.begin(model, [torch.optim.AdamW(trained(model))])
        assert torch.equal(A, moved)
        callback.end()
    fresh = adapted()  # another adapter in the place of this one
    callback.begin(fresh, [torch.optim.AdamW(trained(fresh))])
    assert torch.allclose(fresh.base_model.model[0].lora_A["default"].weight, moved, atol=1e-5)


def test_a_provisional_consolidation_that_is_rolled_back_leaves_nothing_to_undo() -> None:
    data, model = Data(), adapted()
    comm, _ = protected(model, strength=1.0)
    comm.remember(data.old() for _ in range(8))
    rule = next(rule for rule in comm.rules if isinstance(rule, LoraARule))
    model.train()
    for _ in range(20):  # a window, without a step
        model(data.new()[0]).square().mean().backward()
        comm.analyze()
    comm.monitor.provisional.consolidate()
    comm.monitor.provisional.roll_back()
    assert rule.memory is not None
    assert torch.allclose(rule.memory.A, rule.layer.along(rule.weights(), rule.memory.U))


@pytest.mark.slow
def test_the_state_is_saved_and_loaded() -> None:
    data, model = Data(), adapted()
    comm, optimizer = protected(model, strength=1.0)
    comm.remember(data.old() for _ in range(8))
    learn(model, optimizer, news(data, 20))
    other, twin_optimizer = copy.deepcopy(model), None
    twin, twin_optimizer = protected(other, strength=1.0)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin.load_state_dict(copy.deepcopy(comm.state_dict()))
    batches = list(news(data, 40))
    learn(model, optimizer, iter(batches))
    learn(other, twin_optimizer, iter(batches))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# --- warnings ---


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (
            lambda: peft.get_peft_model(network(), peft.IA3Config(target_modules=["0"], feedforward_modules=[])),
            "Linear",
        ),
        (lambda: peft.get_peft_model(network(), peft.OFTConfig(target_modules=["0"], oft_block_size=4)), "Linear"),
        (lambda: adapted(embedding(), target_modules=["0", "1"]), "Embedding"),
    ],
    ids=["IA3", "OFT", "embedding"],
)
def test_other_adapters_are_named_once(make: Callable[[], Any], kind: str) -> None:
    model, callback = make(), SALCallback()
    with pytest.warns(UserWarning, match=rf"not moved out of the directions of old inputs: .*{kind}"):
        callback.begin(model, [torch.optim.SGD(trained(model), lr=0.1)])
    callback.end()
    callback.begin(model, [torch.optim.SGD(trained(model), lr=0.1)])  # a second warning would be an error


def test_lora_gives_no_warning() -> None:
    for options in ({}, {"use_dora": True}, {"lora_bias": True}):
        protected(adapted(**options))
