import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import batch, equal, moved, overlapping, same, train, weights

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.01),
}


def names(model):
    return {name for name, _ in model.named_parameters()}


def close(one, other, **tolerance):
    return all(torch.allclose(a, b, **tolerance) for a, b in zip(one, other, strict=True))


# --- parameters that come, go and rest ---


@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_frozen_in_mid_training_do_not_move_at_all(kind, protection):
    model = models.mlp()
    optimizer = OPTIMIZERS[kind](model.parameters())
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None)
    train(model, optimizer, comm, overlapping, task=0, steps=40)
    comm.consolidate()
    train(model, optimizer, comm, overlapping, task=1, steps=20)
    model[0].requires_grad_(False)
    frozen, free = weights(model[0]), weights(model[2])
    train(model, optimizer, comm, overlapping, task=1, steps=10)
    comm.consolidate()
    train(model, optimizer, comm, overlapping, task=2, steps=10)
    assert equal(weights(model[0]), frozen)
    assert not equal(weights(model[2]), free)


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_thawed_weights_are_protected_as_before(protection):
    drift = {}
    x, _ = overlapping(0, 999)
    for held in (False, True):
        model = models.mlp()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None, strength=1e6)
        train(model, optimizer, comm, overlapping, task=0, steps=60)
        if held:
            comm.consolidate()
        model[0].requires_grad_(False)
        train(model, optimizer, comm, overlapping, task=1, steps=10)
        model[0].requires_grad_(True)
        before = model[0](x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=60)
        drift[held] = moved(model[0], x, before)
    assert drift[True] < 0.1 * drift[False]


@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("how", ["thawed", "added"])
def test_weights_that_join_in_mid_training_are_covered_and_held_from_the_next_consolidation(how, protection):
    drift = {}
    x, _ = overlapping(0, 999)
    for held in (False, True):
        model = models.mlp()
        model[0].requires_grad_(how != "thawed")
        optimizer = OPTIMIZERS["adamw"](model.parameters() if how == "thawed" else model[2].parameters())
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None, strength=1e6)
        train(model, optimizer, comm, overlapping, task=0, steps=20)
        assert set(comm.coverage()) == {"2.weight", "2.bias"}
        if how == "thawed":
            model[0].requires_grad_(True)
        else:
            optimizer.add_param_group({"params": list(model[0].parameters())})
        train(model, optimizer, comm, overlapping, task=0, steps=40, start=20)
        assert set(comm.coverage()) == names(model)
        if held:
            comm.consolidate()
        before = model[0](x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=60)
        drift[held] = moved(model[0], x, before)
    assert drift[True] < 0.1 * drift[False]


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_a_state_with_weights_that_joined_continues_exactly(protection):
    ended = []
    for interrupted in (False, True):
        model = models.mlp()
        optimizer = OPTIMIZERS["adamw"](model[2].parameters())
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=15)
        train(model, optimizer, comm, overlapping, task=0, steps=10)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        train(model, optimizer, comm, overlapping, task=0, steps=20, start=10)
        if interrupted:
            state = comm.state_dict()
            comm.detach()
            comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=15)
            comm.load_state_dict(state)
        train(model, optimizer, comm, overlapping, task=1, steps=20)
        ended.append(weights(model))
        assert comm.events == [15, 30, 45]
    assert equal(*ended)


class Thaw(BaseFinetuning):
    """The first layer joins in the second epoch, as a parameter group of its own."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=5e-3)


class EpochNet(models.Net):
    """Two epochs of one task, then one of another."""

    def training_step(self, batch, batch_idx):
        return super().training_step(overlapping(int(self.current_epoch == 2), self.global_step), batch_idx)


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_layers_thawed_by_a_finetuning_callback_are_covered_and_held(tmp_path, protection):
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model, before = EpochNet(), []
        callback = SALCallback(protection, consolidate_on=80 if held else None, strength=1e6)
        early = models.At(20, lambda *_, c=callback: c.coverage())
        late = models.At(80, lambda _, m, b=before: b.append(m.net[0](x).detach()))
        run = models.trainer(tmp_path, [Thaw(), callback, early, late], max_epochs=3)
        run.fit(model, models.loader(length=40))
        assert set(early.result) == {"net.2.weight", "net.2.bias"}
        assert set(callback.coverage()) == names(model)
        drift[held] = moved(model.net[0], x, before[0])
    assert drift[True] < 0.1 * drift[False]


# --- embeddings ---

TOKENS, WIDTH = 6, 4


class Tied(nn.Module):
    """The table that reads the tokens also names them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.middle = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.middle(self.table(tokens)))


def tied_steps(model, optimizer, comm, steps):
    """Every token comes equally often, and the next one is to be named; returns the last whole gradient."""
    for i in range(steps):
        tokens = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), (tokens + 1) % TOKENS).backward()
        whole = model.table.weight.grad.clone()
        comm.analyze()
        comm.protect()
        optimizer.step()
    return whole


def test_a_tied_weight_is_covered_once():
    model = Tied()
    comm = CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(comm.coverage()) == names(model) == {"table.weight", "middle.weight", "middle.bias"}
    assert comm.memory()["model"] == 4 * (TOKENS * WIDTH + WIDTH * WIDTH + WIDTH)


def test_a_tied_weight_is_moved_back_once():
    model, rate = Tied(), 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1.0)
    tied_steps(model, optimizer, comm, 5)
    comm.consolidate()
    start = model.table.weight.detach().clone()
    gradient = tied_steps(model, optimizer, comm, 1)
    s = 0.5  # of tokens equally frequent, at strength 1; once for the gradient, once for the update
    assert torch.allclose(model.table.weight - start, -rate * (1 - s) ** 2 * gradient, atol=1e-6)
    assert gradient.abs().max() > 0.05


def test_a_tied_weight_held_with_all_strength_stays_still():
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e9)
    tied_steps(model, optimizer, comm, 5)
    comm.consolidate()
    start = model.table.weight.detach().clone()
    tied_steps(model, optimizer, comm, 20)
    assert torch.allclose(model.table.weight, start, rtol=0, atol=1e-6)


SPARSE = {
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.05),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5),
}


def table(sparse):
    torch.manual_seed(0)
    return nn.Embedding(20, WIDTH, sparse=sparse)


def tokens_of(task, i):
    """Ten tokens for each task, and the vectors they shall have."""
    tokens = torch.randint(10 * task, 10 * task + 10, (64,), generator=torch.Generator().manual_seed(i))
    return tokens, F.one_hot(tokens % WIDTH, WIDTH).float()


@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("kind", SPARSE)
def test_tokens_with_sparse_gradients_are_held_and_new_ones_are_free(kind, protection):
    model = table(sparse=True)
    optimizer = SPARSE[kind](model.parameters())
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None, strength=1e6)
    train(model, optimizer, comm, tokens_of, task=0, steps=20)
    comm.consolidate()
    old, new = model.weight[:10].detach().clone(), model.weight[10:].detach().clone()

    def turned(task, i):
        tokens, wanted = tokens_of(i % 2, i)
        return tokens, 1 - wanted

    train(model, optimizer, comm, turned, task=0, steps=20)
    assert model.weight.grad.is_sparse
    assert torch.allclose(model.weight[:10], old, atol=1e-2)
    assert (model.weight[10:] - new).norm() > 0.1


def test_sparse_and_dense_gradients_give_the_same_weights():
    ended = []
    for sparse in (False, True):
        model = table(sparse)
        optimizer = SPARSE["SGD"](model.parameters())
        comm = CommunicationLayer(model, optimizer, consolidate_on=15)
        train(model, optimizer, comm, tokens_of, task=0, steps=20)
        train(model, optimizer, comm, tokens_of, task=1, steps=20)
        assert comm.spectrum().protected > 0
        ended.append(weights(model))
    assert close(*ended, atol=1e-6)


def test_sparse_gradients_pass_the_callback(tmp_path):
    model, callback = models.Net(table(sparse=True), SPARSE["SparseAdam"]), SALCallback(consolidate_on=10)
    data = DataLoader([tokens_of(0, i) for i in range(30)], batch_size=None)
    run = models.trainer(tmp_path, [callback], log_every_n_steps=5)
    run.fit(model, data)
    assert callback.events == [10, 20, 30]
    assert 0 < run.callback_metrics["sal/effect"] < 1
    assert sum(callback.spectrum("observed")) == pytest.approx(100)


# --- parameters of an unusual kind ---


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
def test_lazy_layers_are_covered_from_the_first_step_that_has_them(tmp_path, protection):
    torch.manual_seed(0)
    model = models.Net(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4)))
    callback = SALCallback(protection, consolidate_on=20)
    first = models.At(1, lambda *_: callback.coverage())
    models.trainer(tmp_path, [callback, first]).fit(model, models.loader(length=40))
    assert set(first.result) == names(model)
    assert set(first.result.values()) == {protection}
    assert callback.events == [20, 40]
    assert callback.memory()["model"] == sum(p.nbytes for p in model.parameters())
    if protection != "tensor":
        assert callback.spectrum().protected > 0


def test_lazy_layers_are_held_like_others(tmp_path):
    drift, x = {}, batch(0, 999)[0]
    for consolidate_on in (None, "novelty"):
        torch.manual_seed(0)
        model, before = models.Net(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4))), []
        callback = SALCallback(consolidate_on=consolidate_on)
        change = models.At(60, lambda _, m, b=before: b.append(m(x).detach()))
        models.trainer(tmp_path, [callback, change]).fit(model, models.loader())
        assert callback.events == ([63] if consolidate_on else [])
        drift[consolidate_on] = moved(model, x, before[0])
    assert drift["novelty"] < 0.5 * drift[None]


class Spectral(nn.Module):
    """Filters its input with complex weights between two Fourier transforms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filter = nn.Parameter(torch.randn(7, dtype=torch.complex64))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=12))


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_complex_weights_are_covered_and_held(tmp_path, protection):
    drift = {}
    for consolidate_on in (None, "novelty"):
        model, callback = models.Net(Spectral()), SALCallback(protection, consolidate_on, strength=100.0)
        change = models.At(60, lambda _, m: m.net.filter.detach().clone())
        run = models.trainer(tmp_path, [callback, change])
        run.fit(model, models.loader())
        assert set(callback.coverage()) == names(model)
        assert callback.coverage()["net.filter"] == "element"
        drift[consolidate_on] = (model.net.filter - change.result).abs().sum().item()
        run.save_checkpoint(tmp_path / "complex.ckpt")
    assert callback.events == [63]
    assert drift["novelty"] < 0.2 * drift[None]
    assert "SALCallback" in torch.load(tmp_path / "complex.ckpt", weights_only=True)["callbacks"]


# --- compiled modules ---


class Counting:
    """The eager backend, counting how often it is asked to compile."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        self.calls += 1
        return graph.forward


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def wrap(model, backend):
    model.net = torch.compile(model.net, backend=backend)
    return model


def in_place(model, backend):
    model.net.compile(backend=backend)
    return model


def whole(model, backend):
    return torch.compile(model, backend=backend)


# torch.compile asks intermediate tensors for their gradient where a graph breaks.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", [wrap, in_place, whole])
def test_compiled_modules_learn_and_are_protected_like_others(tmp_path, how):
    plain, compiled, backend = models.Net(), models.Net(), Counting()
    callbacks = [SALCallback(), SALCallback()]
    models.trainer(tmp_path, [callbacks[0]]).fit(plain, models.loader())
    counts = [models.At(steps, lambda *_: backend.calls) for steps in (40, 60, 80, 120)]
    run = models.trainer(tmp_path, [callbacks[1], *counts])
    run.fit(how(compiled, backend), models.loader())
    calls = [count.result for count in counts]
    assert set(callbacks[1].coverage()) == names(plain)
    assert callbacks[1].coverage() == callbacks[0].coverage()
    assert callbacks[1].events == callbacks[0].events == [63]
    assert close(weights(compiled), weights(plain), rtol=0, atol=1e-6)
    assert calls[0] > 0, "nothing was compiled"
    assert calls[0] == calls[1]
    assert calls[2] == calls[3]
    assert calls[3] <= 8


# --- parametrized modules ---


def normed(how):
    model = models.mlp()
    how(model[0])
    how(model[2])
    return model


PARAMETRIZED = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    nn.utils.spectral_norm,
]


@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("how", PARAMETRIZED, ids=lambda how: f"{how.__module__.split('.')[-1]}.{how.__name__}")
def test_watching_parametrized_weights_changes_nothing(how, protection):
    plain, watched = normed(how), normed(how)
    optimizer = torch.optim.Adam(plain.parameters(), lr=5e-3)
    train(plain, optimizer, None, overlapping, task=0, steps=30)
    optimizer = torch.optim.Adam(watched.parameters(), lr=5e-3)
    comm = CommunicationLayer(watched, optimizer, protection=protection)
    comm.coverage(), comm.memory(), comm.spectrum(), comm.state_dict()
    train(watched, optimizer, comm, overlapping, task=0, steps=30)
    assert same(plain, watched)
    assert comm.events == []


@pytest.mark.parametrize("how", PARAMETRIZED, ids=lambda how: f"{how.__module__.split('.')[-1]}.{how.__name__}")
def test_parametrized_weights_are_covered_by_their_true_names_and_held(how):
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model = normed(how)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e4)
        train(model, optimizer, comm, overlapping, task=0, steps=60)
        assert set(comm.coverage()) == names(model)
        if held:
            comm.consolidate()
        before = model.eval()(x).detach()
        train(model.train(), optimizer, comm, overlapping, task=1, steps=60)
        drift[held] = moved(model.eval(), x, before)
    assert drift[True] < 0.3 * drift[False]


# --- adapters on a frozen language model ---

VOCABULARY = 50


@pytest.fixture(scope="module")
def language_model():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=16,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


def adapted(language_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    modules = ["c_attn", "c_fc", "c_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=modules, fan_in_fan_out=True, task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(language_model), config)


def sentences(task, i, n=16):
    """Each task counts in its own half of the vocabulary, by its own stride."""
    half = VOCABULARY // 2
    start = torch.randint(0, half, (n, 1), generator=torch.Generator().manual_seed(1000 * task + i))
    tokens = (start + (3 + 4 * task) * torch.arange(8)) % half + half * task
    return tokens, tokens


def next_token_loss(output, tokens):
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_a_language_model_remember_and_its_frozen_weights_stay(tmp_path, language_model):
    forgotten, learned = {}, {}
    (x, y), (z, w) = sentences(0, 999), sentences(1, 999)
    for held in (False, True):
        model = models.Net(adapted(language_model), lambda p: torch.optim.AdamW(p, lr=1e-2), next_token_loss)
        adapters = {name for name, p in model.named_parameters() if p.requires_grad}
        base = {name: p.detach().clone() for name, p in model.named_parameters() if name not in adapters}
        callback = SALCallback(consolidate_on=None, strength=30.0)
        first = DataLoader([sentences(0, i) for i in range(80)], batch_size=None)
        second = DataLoader([sentences(1, i) for i in range(60)], batch_size=None)
        models.trainer(tmp_path, [callback]).fit(model, first)
        assert set(callback.coverage()) == adapters
        assert all("lora_" in name for name in adapters)
        if held:
            callback.consolidate()
            assert callback.spectrum().protected > 0
        before, unlearned = next_token_loss(model(x), y).item(), next_token_loss(model(z), w).item()
        models.trainer(tmp_path, [callback]).fit(model, second)
        forgotten[held] = next_token_loss(model(x), y).item() - before
        learned[held] = unlearned - next_token_loss(model(z), w).item()
        assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    assert forgotten[True] < 0.6 * forgotten[False]
    assert learned[True] > 0.1


# --- attention ---


class Attend(nn.Module):
    """Attention of a sequence to itself, given by position or by name, or to keys of another width."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        width = 6 if how == "widths" else None
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True, kdim=width, vdim=width)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = x.view(-1, 4, 12)
        if self.how == "keywords":
            y, _ = self.attention(query=x, key=x, value=x, need_weights=False)
        else:
            z = x[..., :6] if self.how == "widths" else x
            y, _ = self.attention(x, z, z, need_weights=False)
        return self.head(y.flatten(0, 1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 4, 12)).flatten(0, 1))


ATTENTION = {
    "positions": lambda: Attend("positions"),
    "keywords": lambda: Attend("keywords"),
    "widths": lambda: Attend("widths"),
    "encoder layer": Encoder,
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_is_covered_whole_and_remembers(kind):
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model = ATTENTION[kind]()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e4)
        train(model, optimizer, comm, overlapping, task=0, steps=60)
        assert set(comm.coverage()) == names(model)
        if held:
            comm.consolidate()
        before = model(x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=40)
        drift[held] = moved(model, x, before)
    assert drift[True] < 0.3 * drift[False]


def test_positions_and_keywords_are_watched_alike():
    ended = []
    for kind in ("positions", "keywords"):
        model = ATTENTION[kind]()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=20)
        train(model, optimizer, comm, overlapping, task=0, steps=50)
        ended.append(weights(model))
    assert close(*ended, rtol=0, atol=1e-6)


# --- forward passes of an unusual kind ---


class Stack(nn.Module):
    def __init__(self, checkpointed):
        super().__init__()
        torch.manual_seed(0)
        self.checkpointed = checkpointed
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_layers_run_again_by_gradient_checkpointing_are_watched_once(tmp_path, protection):
    plain, checkpointed = models.Net(Stack(False)), models.Net(Stack(True))
    callbacks = [SALCallback(protection), SALCallback(protection)]
    for model, callback in zip((plain, checkpointed), callbacks, strict=True):
        models.trainer(tmp_path, [callback]).fit(model, models.loader())
    assert callbacks[0].events == callbacks[1].events == [63]
    assert close(weights(plain), weights(checkpointed), rtol=0, atol=1e-6)
    assert callbacks[1].spectrum() == callbacks[0].spectrum()


class Twice(nn.Module):
    """One layer reads both halves of a batch, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.head = nn.Linear(12, 16), nn.Linear(32, 4)

    def forward(self, x):
        first, second = x.chunk(2)
        return self.head(torch.cat([self.shared(first), self.shared(second)], 1).tanh()).repeat(2, 1)


def test_a_layer_used_twice_in_a_forward_pass_keeps_what_it_did_in_both_places():
    answers = {}
    tasks = [batch(t, 999)[0] for t in range(3)]

    def both(task, i):
        """The first half of the rows is of one task, the second of the next."""
        (x, y), (z, _) = batch(task, i), batch((task + 1) % 3, i + 500)
        return torch.cat([x[:16], z[:16]]), y

    for held in (False, True):
        model = Twice()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=20.0)
        train(model, optimizer, comm, both, task=0, steps=80)
        if held:
            comm.consolidate()
        before = [model.shared(x).detach() for x in tasks]
        # Now the third task and the first: the places have changed.
        train(model, optimizer, comm, both, task=2, steps=60)
        train(model, optimizer, comm, both, task=1, steps=60)
        answers[held] = [moved(model.shared, x, b) for x, b in zip(tasks, before, strict=True)]
    first, second, third = (answers[True][t] / answers[False][t] for t in range(3))
    assert max(first, second) < 0.15
    assert third > 2 * max(first, second)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(12, 16)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 4)) for _ in range(2))
        self.use = 0

    def forward(self, x):
        return self.heads[self.use](self.body(x).tanh())


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_without_a_gradient_in_a_step_do_not_move_in_it(kind, protection):
    model = TwoHeads()
    optimizer = OPTIMIZERS[kind](model.parameters())
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=20)
    for i in range(60):
        model.use = i // 3 % 2
        idle = weights(model.heads[1 - model.use])
        busy = weights(model.heads[model.use])
        train(model, optimizer, comm, overlapping, task=i // 30, steps=1, start=i)
        assert equal(weights(model.heads[1 - model.use]), idle)
        assert not equal(weights(model.heads[model.use]), busy)
    assert comm.events == [20, 40, 60]
