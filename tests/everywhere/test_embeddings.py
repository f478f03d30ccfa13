import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.subspace import SubspaceRule
from tests.everywhere import models
from tests.everywhere.models import close, names, train, weights

pytestmark = pytest.mark.slow

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


def tied_steps(model, optimizer, comm, steps, known=TOKENS):
    """The first ``known`` tokens come equally often, and the next one is to be named; returns the last gradient."""
    for i in range(steps):
        tokens = torch.randperm(known, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), (tokens + 1) % TOKENS).backward()
        whole = model.table.weight.grad.clone()
        comm.analyze()
        comm.protect()
        optimizer.step()
    return whole


def test_a_tied_weight_counts_once():
    model = Tied()
    comm = CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(comm.coverage()) == names(model) == {"table.weight", "middle.weight", "middle.bias"}
    size = TOKENS * WIDTH + WIDTH * WIDTH + WIDTH
    assert comm.memory()["model"] == 4 * size
    tied_steps(model, comm.optimizer, comm, 5)
    comm.consolidate()
    assert sum(rule.bands().sum() for rule in comm.rules) == sum(rule.trained() for rule in comm.rules) == size


def test_both_uses_of_a_tied_weight_are_held_one_after_the_other():
    """By hand: rows with s of their frequency; of tokens that do not occur, columns with S of the head's inputs too."""
    model, rate = Tied(), 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1.0, pull=0, recall=0)
    tied_steps(model, optimizer, comm, 5)
    comm.consolidate()
    (head,) = [rule for rule in comm.rules if rule.name == "head"]
    m = head.memory
    start = model.table.weight.detach().clone()
    gradient, present = tied_steps(model, optimizer, comm, 1, known=4), 4
    comm.settle()
    row = 0.5  # of tokens equally frequent, at strength 1
    # Both reduce the gradient, and then the update; the head's s̄ only the update.
    masked = torch.eye(WIDTH) - m.U[0] @ torch.diag(m.f[0]) @ m.U[0].T
    free = (1 - m.s_rest) * masked @ masked
    gradient[present:] = gradient[present:] @ free
    torch.testing.assert_close(model.table.weight - start, -rate * (1 - row) ** 2 * gradient)
    assert gradient[:present].abs().max() > 0.05
    assert gradient[present:].abs().max() > 0.01


class Halves(Tied):
    """The head's inputs use the first half of their dimensions, or the second."""

    def __init__(self, first=True):
        super().__init__()
        self.first = first

    def forward(self, tokens):
        used = torch.arange(WIDTH) < WIDTH // 2
        return self.head(self.middle(self.table(tokens)) * (used if self.first else ~used))


@pytest.mark.parametrize("order", [["table", "head"], ["head", "table"]])
def test_rows_of_tokens_that_never_occur_are_held_along_the_inputs_that_the_head_had(order):
    """As most tokens of the vocabulary of a language model that is trained further."""
    model, known, never = Halves(), 3, TOKENS - 1
    model.head.bias = nn.Parameter(torch.zeros(TOKENS))
    model._modules = {name: model._modules[name] for name in dict.fromkeys([*order, "middle"])}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e9, pull=0)

    def steps(low, high):
        for i in range(20):
            tokens = torch.randint(low, high, (8,), generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            F.cross_entropy(model(tokens), tokens).backward()
            optimizer.step()

    steps(0, known)
    comm.consolidate()
    start, model.first = model.table.weight.detach().clone(), False
    steps(known, never)
    comm.settle()
    moved = (model.table.weight - start).abs()
    assert moved[:known].max() < 1e-5
    assert moved[known:never].min() > 0.01
    assert moved[never, : WIDTH // 2].max() < 1e-5
    assert moved[never, WIDTH // 2 :].min() > 0.01


def test_a_tied_table_resumes_bit_for_bit():
    def start(state=None):
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
            comm.load_state_dict(state[2])
        return model, optimizer, comm

    one = model, optimizer, comm = start()
    tied_steps(*one, 5)
    comm.consolidate()
    tied_steps(*one, 21, known=3)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), comm.state_dict()))
    other = start(state)
    for each in (one, other):
        tied_steps(*each, 30, known=5)
    assert torch.equal(one[0].table.weight, other[0].table.weight)
    assert one[2].spectrum() == other[2].spectrum()


def test_a_head_that_is_not_called_leaves_its_table_held_by_rows():
    class Named(Tied):
        def forward(self, tokens):
            return F.linear(self.middle(self.table(tokens)), self.table.weight)

    model = Named()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e9, pull=0)
    tied_steps(model, optimizer, comm, 3)
    assert [type(rule) for rule in comm.rules] == [EmbeddingRule, SubspaceRule]
    assert comm.coverage()["table.weight"] == "subspace"
    comm.consolidate()
    start = model.table.weight.detach().clone()
    tied_steps(model, optimizer, comm, 3)
    assert torch.allclose(model.table.weight, start, rtol=0, atol=1e-6)
    assert sum(rule.trained() for rule in comm.rules) == sum(p.numel() for p in model.parameters())


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
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None, strength=1e6, pull=0)
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
        comm = CommunicationLayer(model, optimizer, consolidate_on=15, strength=4.0, pull=0)
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


class Shared(nn.Module):
    """As in T5: the table has a name of its own, and is called under others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.reader, self.writer = (nn.Embedding(20, WIDTH) for _ in range(3))
        self.reader.weight = self.writer.weight = self.shared.weight
        self.both = False

    def forward(self, tokens):
        return self.writer(tokens) + self.reader(tokens) if self.both else self.reader(tokens)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("both", [False, True])
def test_a_shared_table_counts_the_tokens_of_every_module_that_looks_them_up(both, mode):
    model = Shared().train(mode)
    model.both = both
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    for _ in range(2):
        model(torch.tensor([1, 1, 1, 2])).sum().backward()
        optimizer.step()
    assert comm.coverage() == {"shared.weight": "subspace"}
    R = comm.rules[0].R / comm.rules[0].weight
    assert torch.allclose(R, torch.zeros(20).index_put((torch.tensor([1, 2]),), torch.tensor([0.75, 0.25])))
    comm.detach()
    assert models.hooks(model, [optimizer]) == 0


HUGGING = {"vocab_size": 50, "d_model": 16, "decoder_start_token_id": 0}
FOLLOWING = {
    "T5": {"d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "Bart": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 20,
        "forced_eos_token_id": None,
    },
}


@pytest.mark.filterwarnings("ignore:Layers with a forward pass of their own")
@pytest.mark.parametrize("kind", FOLLOWING)
def test_the_table_of_a_sequence_to_sequence_model_is_held_by_its_tokens(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**HUGGING | FOLLOWING[kind])
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    tokens = torch.arange(3, 27).view(2, 12)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens + 20).loss.backward()
        optimizer.step()
    table, head = [rule for rule in comm.rules if any("shared" in name for name in rule.parameters)]
    assert (type(table), type(head)) == (EmbeddingRule, SubspaceRule)
    # The encoder reads 3 to 26, the decoder 0 and, but for the last of each text, what comes next.
    decoded = torch.cat([torch.full((2, 1), config.decoder_start_token_id), tokens[:, :-1] + 20], 1)
    counts = torch.bincount(torch.cat([tokens, decoded]).flatten(), minlength=50)
    first = decoded[0, 0] if kind == "T5" else model.config.decoder_start_token_id
    assert first == 0
    assert torch.allclose(table.R / table.weight, counts / counts.sum(), atol=1e-6)


def test_a_tied_head_whose_bias_was_frozen_when_saved_stays_tied():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head, self.table = nn.Linear(WIDTH, TOKENS), nn.Embedding(TOKENS, WIDTH)
            self.head.weight, self.middle = self.table.weight, nn.Linear(WIDTH, WIDTH)

        def forward(self, tokens):
            return self.head(self.middle(self.table(tokens)))

    frozen = First()
    frozen.head.bias.requires_grad_(False)
    comm = CommunicationLayer(frozen, torch.optim.Adam(frozen.parameters()), consolidate_on=None)
    tied_steps(frozen, comm.optimizer, comm, 3)
    comm.consolidate()
    model = First()
    other = CommunicationLayer(model, torch.optim.Adam(model.parameters()), consolidate_on=None)
    other.load_state_dict(comm.state_dict())
    rules = {rule.name: rule for rule in other.rules}
    assert rules["head"].table is rules["table"]
    assert sum(rule.trained() for rule in other.rules) == sum(p.numel() for p in model.parameters())
