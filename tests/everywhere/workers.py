"""What each process does in the tests of several processes."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.settings import Protection
from tests.everywhere import models
from tests.everywhere.models import At, batch
from tests.everywhere.processes import COUNT

DELAY = 3  # seconds by which one process is later than the other
EPOCH, EPOCHS, CHANGE = (
    24,
    3,
    models.CHANGE,
)  # batches of an epoch, epochs, and the batch from which on the data are others


# --- batch ``i`` of process ``rank`` ---

Data = Callable[[int, int], tuple[Tensor, Tensor]]


def halves(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """Every other row of a batch that is of one task, later of another."""
    x, y = batch(int(i >= CHANGE), i)
    return x[rank::COUNT], y[rank::COUNT]


def quarters(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """The same, in two batches one after the other."""
    x, y = halves(rank, i // 2)
    return x[i % 2 :: 2], y[i % 2 :: 2]


def apart(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """Each process has a task of its own, later both have a third."""
    return batch(rank if i < CHANGE else 2, i + 500 * rank)


def aside(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """Only the second process meets another task."""
    return batch(rank if i >= CHANGE else 0, i + 500 * rank)


def interrupted(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """Each process has a task of its own; one batch is of a third."""
    return batch(2 if i == CHANGE else rank, i + 500 * rank)


def words(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """EmbeddingRule of the lower half of the table, later of the upper."""
    tokens = torch.randint(5, (32, 3), generator=torch.Generator().manual_seed(i)) + 6 * int(i >= CHANGE)
    y = torch.randn(11, 1, generator=torch.Generator().manual_seed(9))[tokens].sum(1)
    return tokens[rank::COUNT], y[rank::COUNT]


# --- trained by Lightning ---


class Reader(nn.Module):
    """Most of its tensors cannot be dealt out evenly to two; of the last layer one process gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6)
        self.body, self.head = nn.Linear(6, 701), nn.Linear(701, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.table(tokens).sum(1))).tanh())


class Net(models.Net):
    """Trains on the batches of this process, or on those of all together where it is alone."""

    def __init__(self, make: Callable[[], nn.Module], data: Data) -> None:
        super().__init__(make())
        self.data = data

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            for part in (*self.net.children(), self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, i: Tensor, batch_idx: int) -> Tensor:
        ranks = range(COUNT) if self.trainer.world_size == 1 else [self.global_rank]
        batches = [self.data(rank, int(i) + self.current_epoch * len(self.trainer.train_dataloader)) for rank in ranks]
        return super().training_step(tuple(map(torch.cat, zip(*batches, strict=True))), batch_idx)


class Saves(L.Callback):
    """Saves a checkpoint after the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@dataclass(frozen=True)
class Plan:
    """One training."""

    data: Data = halves
    make: Callable[[], nn.Module] = models.mlp
    strategy: str = "ddp"  # or "sharded" or, in one process, "auto"
    choices: dict[str, Any] = field(default_factory=dict)  # of the callback
    consolidate_at: int | None = None
    accumulate: int = 1
    saved: Path | None = None  # where its checkpoint goes
    resumed: Path | None = None  # where it starts from


class Result(NamedTuple):
    """What came of it, whole in every process."""

    weights: dict[str, Tensor]
    kept: dict[str, Tensor] | None  # the weights when it was consolidated by hand
    events: list[int]
    spectrum: dict[str, float]
    state: dict[str, Any]


def fit(rank: int, folder: Path, plan: Plan) -> Result:
    # By directions and weights alone: for the pull each process measures its own rows, with other random signs.
    sal = SALCallback(**{"strength": 4.0, "pull": 0} | plan.choices)

    def consolidate(trainer: L.Trainer, module: Net) -> dict[str, Tensor]:
        sal.consolidate()
        return whole(module.net)

    by_hand = At(plan.consolidate_at or -1, consolidate)
    callbacks, options = [sal, by_hand], {"strategy": plan.strategy}
    if plan.strategy != "auto":
        options |= {"devices": COUNT, "use_distributed_sampler": False}
    if plan.strategy == "sharded":
        options["strategy"] = ModelParallelStrategy(COUNT, 1, save_distributed_checkpoint=False)
    if plan.saved is not None:
        callbacks.append(Saves(plan.saved))
    a = plan.accumulate
    trainer = models.trainer(folder, callbacks, max_epochs=EPOCHS, accumulate_grad_batches=a, **options)
    module = Net(plan.make, plan.data)
    trainer.fit(module, DataLoader(range(EPOCH * a), batch_size=None), ckpt_path=plan.resumed)
    return Result(whole(module.net), by_hand.result, sal.events, sal.spectrum()._asdict(), sal.state_dict())


def broken(rank: int, i: int) -> tuple[Tensor, Tensor]:
    """The second process fails, the first is long about it."""
    if i == CHANGE + 10:
        if rank == 0:
            time.sleep(DELAY)
        raise RuntimeError(time.monotonic())
    return halves(rank, i)


def fall(rank: int, folder: Path, strategy: str) -> float:
    """Seconds from a failure in the middle of a training to its end."""
    try:
        fit(rank, folder, Plan(broken, strategy=strategy))
    except RuntimeError as error:
        return time.monotonic() - error.args[0]
    return math.inf


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights, gathered from all processes where they are dealt out."""
    found = {name: p.detach() for name, p in module.named_parameters()}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in found.items()}


# --- trained by hand ---


class Heads(nn.Module):
    """One body and a head for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(models.INPUTS, 16)
        self.heads = nn.ModuleList(nn.Linear(16, models.OUTPUTS) for _ in range(2))

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[task](self.body(x).tanh())


class Towers(nn.Module):
    """A network for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(models.mlp(seed) for seed in range(2))

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.towers[task](x)


def in_turns(rank: int, i: int) -> int:
    """One task, then the other."""
    return i // 40


def one_each(rank: int, i: int) -> int:
    """Each process has its own task."""
    return rank


def late(rank: int, i: int) -> int:
    """The second task comes for the first time when windows are looked at only now and then."""
    return int(i == 20 or i >= 25)


def later(rank: int, i: int) -> int:
    """It comes once at such a time, and then after the first half."""
    return int(i == 20 or i >= 40)


class ByHand(NamedTuple):
    """What came of it."""

    weights: dict[str, Tensor]
    coverage: dict[str, str]
    held: list[set[str]]  # the rules that hold something: after consolidating nothing, and half of the training


def by_hand(rank: int, make: Callable[[], nn.Module], schedule: Callable[[int, int], int]) -> ByHand:
    """Plain PyTorch under DDP; the same rows in one process where there is only that."""
    model, held, several = make(), [], distributed.is_initialized()
    together = DistributedDataParallel(model, find_unused_parameters=True) if several else model
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=4.0, pull=0)
    for i in range(80):
        if i in (0, 40):
            comm.consolidate()
            held.append({rule.name for rule in comm.rules if rule.holds})
        task = schedule(rank, i)
        x, y = (t[rank::COUNT] if several else t for t in batch(task, i))
        optimizer.zero_grad()
        F.mse_loss(together(x, task), y).backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
        if several and rank == 0:
            comm.state_dict()  # as if to save it: nobody else need be there
    return ByHand(whole(model), comm.coverage(), held)


def normed() -> nn.Sequential:
    """Layers with directions, and one without."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(models.INPUTS, 32), nn.Tanh(), nn.LayerNorm(32), nn.Linear(32, models.OUTPUTS))


def remember(rank: int, protected: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each process remembers data of its own, as many as it has; returns the weights before training and after."""
    model = normed()
    together, before = DistributedDataParallel(model), whole(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=4.0, pull=0)
    if protected:
        comm.remember([batch(rank, i) for i in range(20 + rank)])
    for i in range(120):
        x, y = batch(2, i + 500 * rank)
        optimizer.zero_grad()
        F.mse_loss(together(x), y).backward()
        optimizer.step()
    return before, whole(model)


def tensor_parallel(rank: int, protection: Protection) -> tuple[dict[str, Tensor], dict[str, str], list[int]]:
    """Layers whose rows are dealt out while all processes see the same batches; whole where there is one process."""
    model = normed()
    if distributed.is_initialized():
        layers = {name: ColwiseParallel(output_layouts=Replicate()) for name in ("0", "3")}
        parallelize_module(model, init_device_mesh("cpu", (COUNT,)), layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    comm = CommunicationLayer(model, optimizer, protection=protection, strength=4.0, pull=0)
    for i in range(models.LENGTH):
        x, y = batch(int(i >= CHANGE), i)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    return whole(model), comm.coverage(), comm.events


def classes(rank: int) -> tuple[dict[str, Tensor], int]:
    """Two classes and then two others, told; each process has every other row, one process has all."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    several = distributed.is_initialized()
    net = DistributedDataParallel(model) if several else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, pull=0)
    for i in range(60):
        if i == 30:
            comm.consolidate()
        generator = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 6, generator=generator), torch.randint(2, (16,), generator=generator) + 2 * (i >= 30)
        rows = slice(rank, None, COUNT) if several else slice(None)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return whole(model), comm.collector.coverage.adjustment.absent()


def flattened(rank: int, original: bool) -> str:
    """What is said to a model of FSDP1."""
    model = FullyShardedDataParallel(models.mlp(), use_orig_params=original, device_id=torch.device("cpu"))
    try:
        CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    except ValueError as error:
        return str(error)
    return "nothing"
