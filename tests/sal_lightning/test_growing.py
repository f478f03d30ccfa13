"""Models that grow between fits: new parts are free, held parts stay held, missing parts raise an error."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import Net, batch, equal, loader, names, trainer, weights

RULES = pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])


def fit(tmp_path, model, callback, first=0, length=15):
    trainer(tmp_path, [callback]).fit(model, loader(first=first, length=length, change=10**6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protection", "consolidate_on"),
    [("subspace", "novelty"), ("subspace", 20), ("element", "novelty"), ("tensor", 20)],
)
def test_a_layer_frozen_in_the_first_fit_is_free_in_the_second(tmp_path, protection, consolidate_on):
    model, callback = Net(), SALCallback(protection, consolidate_on)
    model.net[0].requires_grad_(False)
    fit(tmp_path, model, callback, length=25)
    model.net[0].requires_grad_(True)
    fit(tmp_path, model, callback, first=1, length=25)
    assert callback.coverage() == dict.fromkeys(names(model), protection)
    assert models.steps(callback) == [50]


@pytest.mark.slow
@RULES
def test_a_head_added_for_the_second_task_is_free_and_the_rest_stays_held(tmp_path, protection):
    class Heads(Net):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList([self.net[2]])

        def forward(self, x):
            return self.heads[-1](self.net[:2](x))

    model, callback, x = Heads(), SALCallback(protection, None, strength=1e6), batch(0, 999)[0]
    fit(tmp_path, model, callback)
    callback.consolidate()
    held, before = callback.bands(), model.net[0](x).detach()
    model.heads.append(nn.Linear(32, 4))
    start = weights(model.heads[1])
    fit(tmp_path, model, callback, first=1)
    assert set(callback.coverage()) == names(model)
    if protection != "tensor":
        size = sum(p.numel() for p in model.heads[1].parameters())
        assert (callback.bands() - held).tolist() == [0, 0, size]
        assert models.moved(model.net[0], x, before) < 1e-3
        assert (model.heads[1].weight - start[0]).norm() > 0.1


@pytest.mark.slow
def test_biases_unfrozen_later_are_free_while_their_weights_are_held(tmp_path):
    model, callback = Net(), SALCallback(consolidate_on=None, strength=1e6)
    for layer in (model.net[0], model.net[2]):
        layer.bias.requires_grad_(False)
    fit(tmp_path, model, callback)
    callback.consolidate()
    held, start = [w for w in weights(model) if w.dim() == 2], [w for w in weights(model) if w.dim() == 1]
    model.requires_grad_(True)
    fit(tmp_path, model, callback)
    now = weights(model)
    assert max(float((a - b).norm()) for a, b in zip((w for w in now if w.dim() == 2), held, strict=True)) < 0.02
    assert min(float((a - b).norm()) for a, b in zip((w for w in now if w.dim() == 1), start, strict=True)) > 0.02
    assert callback.coverage() == {n: "element" if "bias" in n else "subspace" for n in names(model)}
    fit(tmp_path, model, callback, first=1)


def widened(old, out):
    new = nn.Linear(old.in_features, out)
    with torch.no_grad():
        new.weight[: old.out_features], new.bias[: old.out_features] = old.weight, old.bias
    return new


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("saved", [False, True])
def test_outputs_added_to_a_head_are_free_and_the_old_ones_stay_held(tmp_path, protection, saved):
    model, callback = Net(), SALCallback(protection, None, strength=1e6)
    fit(tmp_path, model, callback)
    callback.consolidate()
    if saved:
        again = SALCallback(protection, None, strength=1e6)
        again.load_state_dict(callback.state_dict())
        callback = again
    model.net[2] = widened(model.net[2], 6)
    model.loss = lambda y, target: F.mse_loss(y, F.pad(target, (0, 2), value=1.0))
    old, new = model.net[2].weight[:4].detach().clone(), model.net[2].weight[4:].detach().clone()
    fit(tmp_path, model, callback, first=0)
    assert (model.net[2].weight[:4] - old).norm() < 1e-3 * old.norm()
    assert (model.net[2].weight[4:] - new).norm() > 0.1 * new.norm()
    volatile = callback.bands()[2].item()
    assert volatile >= 2 * 33
    kept = callback.state_dict()
    callback.consolidate()  # now they are held like the others
    assert callback.bands()[2] <= volatile - 2 * 33
    third = SALCallback(protection, None, strength=1e6)
    third.load_state_dict(kept)
    fit(tmp_path, model, third, length=1)
    assert third.bands()[2] == volatile


@pytest.mark.slow
def test_new_rows_move_as_in_a_layer_that_holds_nothing():
    """An oracle: two separate heads side by side, the second never held."""
    torch.manual_seed(0)
    one, x = nn.Linear(6, 3), torch.randn(200, 8, 6)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
    comm = CommunicationLayer(one, optimizer, consolidate_on=None, strength=10.0, pull=0)
    for i in range(40):
        optimizer.zero_grad()
        one(x[i]).square().mean().backward()
        optimizer.step()
    comm.consolidate()
    state = comm.state_dict()
    comm.detach()
    both, old, new = widened(one, 5), nn.Linear(6, 3), nn.Linear(6, 2)
    with torch.no_grad():
        old.weight.copy_(both.weight[:3]), old.bias.copy_(both.bias[:3])
        new.weight.copy_(both.weight[3:]), new.bias.copy_(both.bias[3:])

    def train(model, held):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=10.0, pull=0)
        if held:
            comm.load_state_dict(state)
        for i in range(40, 140):
            optimizer.zero_grad()
            (model(x[i]) - 1).square().sum().mul(0.02).backward()
            optimizer.step()

    train(both, held=True)
    train(new, held=False)
    train(old, held=True)
    assert torch.allclose(both.weight[3:], new.weight, atol=1e-6)
    # The demand is measured over the whole layer, so that the old rows are held nearly as firmly as alone.
    assert (both.weight[:3] - old.weight).norm() < 0.1 * (old.weight - one.weight).norm()


@pytest.mark.parametrize("change", ["fewer outputs", "another input", "no layer", "no norm"])
def test_missing_parts_raise_an_error_before_anything_is_changed(tmp_path, change):
    make = lambda: Net(nn.Sequential(*models.mlp(), nn.LayerNorm(4)))  # noqa: E731
    model, callback, other = make(), SALCallback(consolidate_on=None), make()
    fit(tmp_path, model, callback, length=5)
    callback.consolidate()
    learned = callback.state_dict()
    if change == "fewer outputs":
        other.net[2], other.net[3] = nn.Linear(32, 2), nn.Identity()
        match = r"missing here: \['net.3.bias', 'net.3.weight'\]|'net.2' to have at least the 4 outputs"
    elif change == "another input":
        other.net[0], match = nn.Linear(9, 32), r"'net.0' to have the 13 inputs .* that are held, got 10"
    elif change == "no layer":
        other.net[0], match = nn.Identity(), r"missing here: \['net.0'\]"
    else:
        other.net[3], match = nn.Identity(), r"missing here: \['net.3.bias', 'net.3.weight'\]"
    before = weights(other)
    with pytest.raises(ValueError, match=match):
        fit(tmp_path, other, callback, length=5)
    assert equal(weights(other), before)
    assert models.hooks(other, []) == 0
    assert equal(callback.state_dict(), learned)
    fit(tmp_path, model, callback, length=5)
    assert models.steps(callback) == [10]


# --- language models ---

# peft uses an old name of transformers.
HUGGING = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode"),
]


class Language(L.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=5e-3)


def gpt2(vocabulary=25):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocabulary, **sizes)).eval()


def texts(first, last, n=25):
    tokens = torch.randint(first, last, (n, 4, 8), generator=torch.Generator().manual_seed(first))
    return DataLoader(tokens, batch_size=None)


@pytest.mark.slow
@pytest.mark.filterwarnings(*[mark.args[0] for mark in HUGGING])
@pytest.mark.parametrize("held", [False, True])
def test_rows_added_to_an_embedding_are_free_and_the_old_ones_stay_held(tmp_path, held):
    net, callback = gpt2(), SALCallback(consolidate_on=None, strength=1e6)
    trainer(tmp_path, [callback]).fit(Language(net), texts(0, 25))
    if held:
        callback.consolidate()
    net.resize_token_embeddings(50, mean_resizing=False)
    table = net.transformer.wte.weight.detach().clone()
    trainer(tmp_path, [callback]).fit(Language(net), texts(0, 50))
    moved = (net.transformer.wte.weight - table).norm(dim=1)
    assert callback.coverage()["net.transformer.wte.weight"] == "subspace"
    assert moved[25:].mean() > 0.05
    assert bool(moved[:25].max() < 1e-3) == held
    assert models.steps(callback) == [50]


@pytest.mark.slow
@pytest.mark.filterwarnings(*[mark.args[0] for mark in HUGGING])
def test_a_second_adapter_is_held_out_of_what_the_first_was_given_and_the_first_one_stays_known(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    net = peft.get_peft_model(gpt2(), config, adapter_name="one")
    callback = SALCallback(consolidate_on=None, strength=4.0)
    trainer(tmp_path, [callback]).fit(Language(net), texts(0, 25))
    callback.consolidate()
    held = callback.spectrum()
    net.add_adapter("two", config)
    net.set_adapter("two")
    trainer(tmp_path, [callback]).fit(Language(net), texts(0, 25))
    assert callback.coverage()
    assert all(".two." in name for name in callback.coverage())
    a, b = callback.layers[0].rules
    assert a.memory.f.max() > 0.9
    assert b.memory.directions.lam.max() < 0.1, "hardly anything passes on to B, which is free"
    net.set_adapter("one")
    trainer(tmp_path, [callback]).fit(Language(net), texts(0, 25, n=1))
    assert held.protected > 0
    one = [rule for rule in callback.layers[0].rules if ".one" in rule.name]
    assert one
    assert all(rule.holds for rule in one)


# --- in mid-training ---


def test_a_parameter_that_takes_the_place_of_another_is_covered_and_held():
    net, inputs = nn.Sequential(nn.Linear(4, 2)), torch.randn(40, 8, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    comm = CommunicationLayer(net, optimizer, consolidate_on=None, strength=1e6)

    def steps(some):
        for x in some:
            optimizer.zero_grad()
            net(x).sum().backward()
            optimizer.step()

    steps(inputs[:1])
    old, new = net[0], nn.Linear(4, 2)
    place = {id(old.weight): new.weight, id(old.bias): new.bias}
    net[0] = new
    for group in optimizer.param_groups:
        group["params"] = [place.get(id(p), p) for p in group["params"]]
    steps(inputs[1:20])
    assert models.hooks(old, []) == 0
    comm.consolidate()
    start = weights(new)
    steps(inputs[20:])
    assert max(float((a - b).norm()) for a, b in zip(weights(new), start, strict=True)) < 1e-4
    assert [list(rule.parameters.values()) for rule in comm.rules] == [[new.weight, new.bias]]


def test_held_state_is_transferred_to_the_replacement_parameter():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.randn(40, 8, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    comm = CommunicationLayer(net, optimizer, consolidate_on=None, strength=1e6)

    def steps(some):
        for inputs in some:
            optimizer.zero_grad()
            (net(inputs) - 1).square().mean().backward()
            optimizer.step()

    steps(x[:20])
    comm.consolidate()
    held = comm.spectrum()
    net.load_state_dict({name: p + 1 for name, p in net.state_dict().items()}, assign=True)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    start = weights(net)
    steps(x[20:])
    assert comm.spectrum() == held
    assert held.protected > 0
    assert max(float((a - b).norm()) for a, b in zip(weights(net), start, strict=True)) < 2e-2


class Experts(Net):
    """The last Linear and an expert with a table of its own get no rows in some steps."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(5, 4), nn.Conv1d(1, 1, 3)
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        n, (x, y) = (0 if batch_idx % 3 == 2 else 8), batch
        h = self.net(x)
        tokens = torch.zeros(n, 4, dtype=torch.long)
        some = self.table(tokens).sum() + self.conv(x[:n, None]).sum() + self.last(h[:n]).sum()
        return F.mse_loss(h, y) + 1e-3 * (some + self.attention(*[h[:n, None]] * 3)[0].sum())


@pytest.mark.slow
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")
def test_a_part_without_rows_in_a_step_is_passed_over_there(tmp_path, mode):
    model, callback = Experts().train(mode), SALCallback(consolidate_on=8)
    trainer(tmp_path, [callback], log_every_n_steps=1).fit(model, loader(length=16, change=10**6))
    assert callback.events == [8, 16]
    assert set(callback.coverage().values()) == {"subspace"}
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_table_without_tokens_counts_as_not_run():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    shares = []
    for tokens in (torch.tensor([1, 1]), torch.tensor([], dtype=torch.long)):
        model(tokens).sum().backward()
        optimizer.step()
        shares.append((comm.rules[0].R.clone(), comm.rules[0].weight))
    assert equal(*shares)
