"""The same data, model and steps for runs that are compared: trained by Lightning and by hand."""

from collections.abc import Callable, Iterable, Sequence

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sal_lightning import CommunicationLayer

WIDTH, PART, ROWS = 20, 4, 32  # inputs, those of them that one task uses, rows of a batch
BEFORE, AFTER = 12, 20  # steps of the first task, then of the second

Batch = tuple[Tensor, Tensor, float, int]
Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=5e-3)


class Child(torch.optim.Adam):
    """From the moment an Adam exists torch runs the hooks of both steps."""

    def step(self, closure=None):
        return super().step(closure)


def batch(task: int, seed: int, rows: int = ROWS, head: int = 0, weight: float = 1.0) -> Batch:
    """Regression on the four inputs that belong to this task; the loss is multiplied by ``weight``."""
    x = torch.zeros(rows, WIDTH)
    used = slice(PART * task, PART * task + PART)
    x[:, used] = torch.randn(rows, PART, generator=torch.Generator().manual_seed(1000 * task + seed)) + 1
    return x, x[:, used].clone(), weight, head


def stream(*lengths: int, rows: int = ROWS, heads: bool = False) -> list[Batch]:
    """So many batches of the first task, then so many of the second, …; ``heads``: each task has its own."""
    return [batch(t, i, rows, t * heads) for t, length in enumerate(lengths) for i in range(length)]


def split(batches: Sequence[Batch], parts: int) -> list[Batch]:
    """The same rows in so many times more batches."""
    return [
        (small_x, small_y, *rest)
        for x, y, *rest in batches
        for small_x, small_y in zip(x.chunk(parts), y.chunk(parts), strict=True)
    ]


def merge(batches: Sequence[Batch], n: int) -> list[Batch]:
    """Each ``n`` batches in one."""
    groups = [batches[i : i + n] for i in range(0, len(batches), n)]
    return [(torch.cat([b[0] for b in g]), torch.cat([b[1] for b in g]), *g[0][2:]) for g in groups]


class Net(L.LightningModule):
    """Two layers and as many heads as there are tasks; ``make`` gives the optimizer of its parameters.

    Smooth, so that rounding cannot switch a unit on or off and take two runs apart.
    """

    def __init__(self, make: Make = sgd, heads: int = 1, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make = make
        self.body = nn.Sequential(nn.Linear(WIDTH, 16, bias), nn.Tanh(), nn.Linear(16, 16, bias), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(16, PART, bias) for _ in range(heads))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, weight, head = batch
        return weight * F.mse_loss(self.heads[head](self.body(x)), y)

    def configure_optimizers(self):
        return self.make(self.parameters())


class At(L.Callback):
    """Calls ``action`` just before the batch of that number, counted over all epochs."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self.left, self.action = number, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.left == 0:
            self.action()
        self.left -= 1


def fit(model: L.LightningModule, batches: Sequence[Batch], *callbacks: L.Callback, **options) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1, "logger": False, **quiet, **options}
    trainer = L.Trainer(accelerator="cpu", callbacks=list(callbacks), **options)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return trainer


def by_hand(
    model: Net, batches: Iterable[Batch], consolidate_before: int | None = None, ends: Sequence[int] = (), **choices
):
    """The plain loop that every other way is compared with, ``ends`` being those of its epochs; returns its layer."""
    optimizer = model.configure_optimizers()
    comm = CommunicationLayer(model, optimizer, **choices)
    for i, b in enumerate(batches):
        if i == consolidate_before:
            comm.consolidate()
        optimizer.zero_grad()
        model.training_step(b, i).backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
        if i + 1 in ends:
            comm.settle()
    comm.settle()
    comm.detach()
    return comm


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def distance(A: Iterable[Tensor], B: Iterable[Tensor]) -> float:
    """The norm of the difference of all weights together."""
    return float(torch.stack([(a.double() - b.double()).norm() for a, b in zip(A, B, strict=True)]).norm())


def differences(a, b, path=""):
    """Where two states are not equal to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in sorted(a.keys() | b.keys(), key=str) for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [path]


def furthest(A: Iterable[Tensor], B: Iterable[Tensor]) -> float:
    """The largest difference of two weights."""
    return max(float((a - b).abs().max()) for a, b in zip(A, B, strict=True))


def equal(A: Iterable[Tensor], B: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(A, B, strict=True))


def found(events: Sequence[int], change: int) -> bool:
    """Whether one change was found, and soon."""
    return len(events) == 1 and change < events[0] <= change + 5


def matrix(rule) -> Tensor:
    """The weight of a rule's layer with its bias as last column, in double precision."""
    return torch.cat([p.detach().double().reshape(len(p), -1) for p in rule.parameters.values()], 1)


class Marks:
    """What is held of each layer now, and how far it has moved along that since."""

    def __init__(self, layer: CommunicationLayer) -> None:
        self.rules = [rule for rule in layer.rules if rule.grain == "subspace" and rule.holds]
        self.W = [matrix(rule) for rule in self.rules]

    def moved(self) -> list[float]:
        """``‖(W − W₁) U‖ / ‖W₁ U‖`` of each layer over its directions with stability above 0.999."""
        return [self._moved(rule, W) for rule, W in zip(self.rules, self.W, strict=True)]

    def _moved(self, rule, W: Tensor) -> float:
        U = rule.memory.U[0].double()[:, rule.memory.s[0] > 0.999]
        assert U.shape[1] > 0
        return float(((matrix(rule) - W) @ U).norm() / (W @ U).norm())
