"""Rewinding: the accuracy of a trained network when a part of its weights is set back to a consolidated value.

As in "Are All Layers Created Equal?" (Zhang et al. 2022), where layers are set back to earlier checkpoints.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from typing_extensions import override

from experiments.continual.data import load
from experiments.continual.metrics import estimate
from experiments.continual.protocol import data_name
from experiments.filing import Record, origin
from experiments.networks import networks, streams
from experiments.networks.objective import DENOISER
from experiments.networks.protocol import SAMPLES, fit
from experiments.networks.training import Learner, Tell
from sal_lightning import SALCallback

STREAM = "split-two"
STEPS, BATCH = 250, 128
NAMES = tuple(name for name in networks.NETWORKS if name != DENOISER)  # no classes
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
HEADINGS = ("network", "set back", "weights", "moved", "old", "old, among old classes", "new")
NOTE = """\
### Other networks

Written by `python -m experiments.anatomy --networks --data mnist-validation --from-records --table`, not by hand.
Classes 0 to 4, then 5 to 9; SAL with its defaults, consolidated after the first task and only there. After the second
task one part of the network is set back to its value at the consolidation, all others stay. *Weights*: how many it has.
*Moved*: the norm of its movement in the second task, relative to the norm of its value at the consolidation. *Old*:
accuracy on the first task, and with the answers limited to its five classes; *new*: on the second."""

Weights = dict[str, Tensor]  # by the names of the state dict


class Accuracy(NamedTuple):
    """Accuracy on the old classes, on them with outputs limited to them, and on the new ones."""

    old: float
    among_old: float
    new: float


def kind(module: nn.Module, name: str) -> str:
    """The kind of part that a parameter or buffer belongs to, by the type of its module."""
    if isinstance(module, NORMS):
        return "running statistics" if name.startswith("running") else "norms"
    if isinstance(module, nn.RNNBase):
        return "recurrent, from inputs" if "_ih" in name else "recurrent, from states"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "convolutions, depthwise"
    if isinstance(module, nn.Conv2d):
        return "convolutions, pointwise" if module.kernel_size == (1, 1) else "convolutions"
    if isinstance(module, nn.Linear):
        return "linear layers"
    return "positions" if isinstance(module, nn.Embedding) or name == "position" else "others"


def parts(net: nn.Module) -> dict[str, list[str]]:
    """The parameters and running statistics of each part, by the names of the state dict."""
    known: dict[nn.Module, str] = {}
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            known |= {module.linear1: "feed-forward", module.linear2: "feed-forward"}
        if isinstance(module, nn.MultiheadAttention):
            known |= {module: "attention, in", module.out_proj: "attention, out"}
    known[networks.classifier_layer(net)] = "head"
    found: dict[str, list[str]] = {}
    state = net.state_dict()
    for prefix, module in net.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{prefix}.{name}" if prefix else name
            if full in state and tensor.is_floating_point():
                found.setdefault(known.get(module) or kind(module, name), []).append(full)
    return found


def movement(now: Weights, then: Weights, names: Sequence[str]) -> float:
    """Relative movement of several tensors together.

    >>> round(movement({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 0.0])}, ["w"]), 4)
    1.3333
    """
    moved, size = (
        torch.cat([x.flatten() for x in some]).norm()
        for some in ([now[name] - then[name] for name in names], [then[name] for name in names])
    )
    return float(moved / size.clamp(min=torch.finfo(size.dtype).tiny))


def accuracy(learner: Learner, old: streams.Batch, new: streams.Batch) -> Accuracy:
    """Accuracy on the test sets of both tasks."""
    answers, target = learner.answers(old)
    classes = torch.unique(target)
    limited = classes[answers[:, classes].argmax(1)]
    right = float((answers.argmax(1) == target).double().mean()), float((limited == target).double().mean())
    return Accuracy(*right, learner.score(new))


def rewound(
    learner: Learner, then: Weights, groups: Mapping[str, Sequence[str]], old: streams.Batch, new: streams.Batch
) -> Iterator[tuple[str, Record]]:
    """Accuracy with only one group set back to its values at ``then``, for each group; the learner is unchanged."""
    now = {name: tensor.detach().clone() for name, tensor in learner.net.state_dict().items()}
    for part, names in groups.items():
        learner.net.load_state_dict(now | {name: then[name] for name in names})
        size = sum(now[name].numel() for name in names)
        moved = movement(now, then, names) if names else 0.0
        yield part, {"weights": size, "moved": moved} | accuracy(learner, old, new)._asdict()
    learner.net.load_state_dict(now)


class Checkpoint(Callback):
    """Copies the network's state before a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.state: Weights = {}

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.step:
            assert isinstance(pl_module, Learner)
            self.state = {name: tensor.detach().clone() for name, tensor in pl_module.net.state_dict().items()}


def dissect(network: str, seed: int, steps: int, data: str) -> Record:
    """Train with SAL through both tasks, then set back each part of the network, and each of its parameters."""
    arrays = load(data)
    stream = streams.make(STREAM, arrays, seed, steps, BATCH)
    L.seed_everything(seed, verbose=False)
    learner = Learner(network, networks.make(network, round(arrays.train_x.shape[1] ** 0.5)))
    sal, consolidated = SALCallback(consolidate_on=None), Checkpoint(steps)
    fit(learner, stream, [sal, Tell(sal.consolidate, stream.changes), consolidated], joint=False)
    (old,), new = stream.old(SAMPLES), stream.new(SAMPLES)
    groups = parts(learner.net)
    names = [name for group in groups.values() for name in group]
    some = {"nothing": [], **groups, "all": names}
    command = (
        f"python -m experiments.anatomy --networks {network} --seeds {seed} --steps {steps} --data {data_name(data)}"
    )
    return {
        **{"network": network, "stream": STREAM, "steps": steps, "batch": BATCH, "data": data_name(data)},
        "parts": dict(rewound(learner, consolidated.state, some, old, new)),
        "parameters": dict(rewound(learner, consolidated.state, {name: [name] for name in names}, old, new)),
    } | origin(command, seed, "cpu")


def cells(records: Sequence[Record]) -> list[list[str]]:
    """A row for each part of each network, under HEADINGS: means over seeds."""
    rows = []
    for network in dict.fromkeys(r["network"] for r in records):
        some = [r["parts"] for r in records if r["network"] == network]
        for part, first in some[0].items():
            measured = [str(estimate([r[part][key] for r in some])) for key in ("moved", *Accuracy._fields)]
            rows.append([network, part, f"{first['weights']:,}", *measured])
    return rows
