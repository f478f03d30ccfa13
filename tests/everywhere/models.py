"""Small models, data, trainers and questions that the tests of modules, Lightning and its command line share."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sal_lightning import SALCallback

INPUTS, OUTPUTS = 12, 4
# Batches of a short run, and its first one of another task: there a change is found after as few steps as possible.
LENGTH, CHANGE = 52, 40


def batch(task: int, i: int, n: int = 32) -> tuple[Tensor, Tensor]:
    """Regression on four of twelve inputs, other ones for each task; ``i`` numbers the batch."""
    x = torch.zeros(n, INPUTS)
    here = slice(OUTPUTS * task, OUTPUTS * (task + 1))
    x[:, here] = torch.randn(n, OUTPUTS, generator=torch.Generator().manual_seed(1000 * task + i)) + 1
    return x, x[:, here].clone()


def overlapping(task: int, i: int, n: int = 32) -> tuple[Tensor, Tensor]:
    """Regression on inputs that live in four dense directions, so that every task moves every weight."""
    basis = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(task))
    z = torch.randn(n, OUTPUTS, generator=torch.Generator().manual_seed(1000 * task + i + 7)) + 1
    return z @ basis, z.roll(task, 1)


class Batches(Dataset):
    """Item ``i`` is a whole batch: of task ``first`` before ``change``, of the next from there on."""

    def __init__(self, length: int = 120, change: int = 60, first: int = 0) -> None:
        self.length, self.change, self.first = length, change, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return batch(self.first + int(i >= self.change), i)


def loader(length: int = 120, change: int = 60, first: int = 0) -> DataLoader:
    return DataLoader(Batches(length, change, first), batch_size=None)


class Resumable:
    """Batches in order, and where the next one is: as Lightning asks it of a loader that resumes in mid-epoch."""

    def __init__(self, batches):
        self.batches, self.next, self.served = batches, 0, []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.next == len(self):
            self.next = 0
        while self.next < len(self):
            i, self.next = self.next, self.next + 1
            self.served.append(i)
            yield self.batches[i]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, OUTPUTS))


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.01),
}


def _adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)


class _Steps:
    """What both Lightning packages' modules do here."""

    def __init__(
        self,
        net: nn.Module | None = None,
        optimize: Callable[[Any], torch.optim.Optimizer] = _adam,
        loss: Callable[[Any, Any], Tensor] = F.mse_loss,
    ) -> None:
        super().__init__()
        self.net, self.optimize, self.loss = net or mlp(), optimize, loss

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self):
        return self.optimize([p for p in self.parameters() if p.requires_grad])


class Net(_Steps, L.LightningModule):
    """A network trained by Adam on mean squared errors, unless told otherwise."""


class Alternating(Net):
    """Trains the body with one optimizer and the head with another, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        body, head = self.net[0].parameters(), self.net[2].parameters()
        return torch.optim.Adam(body, lr=5e-3), torch.optim.SGD(head, lr=1e-2)


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def trainer(folder: Any, callbacks: list[Callback], make: Callable[..., Any] = L.Trainer, **options: Any) -> Any:
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **QUIET, **options}
    return make(default_root_dir=folder, callbacks=callbacks, **options)


def steps(callback: SALCallback) -> list[int]:
    return [layer.step for layer in callback.layers]


@cache
def reference(length: int = 120, change: int = 60) -> tuple[Net, SALCallback, list[list[Tensor]]]:
    """What training with the callback and nothing else comes to; to be looked at only."""
    model, callback, trail = Net(), SALCallback(), Trail()
    trainer(None, [callback, trail]).fit(model, loader(length, change))
    return model, callback, trail.weights


class At(Callback):
    """Calls ``do(trainer, module)`` when so many optimizer steps were taken, after everything else in that batch."""

    def __init__(self, steps: int, do: Callable[[Any, Any], Any]) -> None:
        self.steps, self.do, self.result, self.called = steps, do, None, False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.steps and not self.called:
            self.called, self.result = True, self.do(trainer, pl_module)


class Trail(Callback):
    """Remembers the weights after every training batch."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(weights(pl_module))


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def close(one: Iterable[Tensor], other: Iterable[Tensor], **tolerance: float) -> bool:
    return all(torch.allclose(a, b, **tolerance) for a, b in zip(one, other, strict=True))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all weights and buffers are equal bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def hooks(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """How many hooks hang on the modules, parameters and optimizers."""
    on_modules = sum(
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    )
    on_parameters = sum(
        len(getattr(p, name) or ())
        for p in model.parameters()
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )
    on_optimizers = sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers)
    return on_modules + on_parameters + on_optimizers


def train(model, optimizer, comm, data, task: int, steps: int, start: int = 0) -> None:
    """Plain PyTorch: so many steps on batches ``data(task, i)``."""
    for i in range(start, start + steps):
        x, y = data(task, i)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        if comm is not None:
            comm.analyze()
            comm.protect()
        optimizer.step()


def moved(model: nn.Module, x: Tensor, before: Tensor) -> float:
    """How far the model's answer to ``x`` is from ``before``, relative to its size."""
    with torch.no_grad():
        return ((model(x) - before).norm() / before.norm()).item()
