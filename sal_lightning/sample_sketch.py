"""Sketch of whole samples of a layer's input, for changes that single patches or time steps do not show."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sal_lightning.input_sketch import InputSketch
from sal_lightning.layers import homogeneous
from sal_lightning.padding import Real
from sal_lightning.rules.base import State
from sal_lightning.rules.input_rule import BETA, DENSE, EVERY, FLOOR, ROWS
from sal_lightning.sampling import sample

SIZE = 256  # approximate number of values that a sample is averaged to
RANK = 64  # rank of the sketch
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def whole(module: nn.Module, x: Tensor, real: Real | None = None) -> Tensor | None:
    """The samples of a layer's input, each averaged over a coarse grid of positions: (samples, channels · positions).

    Inputs are images (samples, channels, …) for convolutions and sequences (samples, …, channels) for other modules.
    If ``real`` marks the positions that are not padding, each sample is the mean over these.

    Returns:
        None if rows are samples already, as for inputs (samples, channels), or if there is no dimension of samples.

    >>> whole(nn.Linear(2, 1), torch.ones(5, 300, 2)).shape
    torch.Size([5, 256])
    >>> whole(nn.Conv2d(3, 8, 3), torch.ones(5, 3, 32, 32)).shape
    torch.Size([5, 243])
    """
    if isinstance(module, _CONVS):
        x = x if x.dim() == module.weight.dim() else x[None, :0]
    elif x.dim() > 2 and real is not None:
        return _mean(x, real.real)
    elif x.dim() > 2:
        batch_first = getattr(module, "batch_first", True)
        x = (x.flatten(1, -2) if batch_first else x.transpose(0, 1).flatten(1, -2)).mT
    if x.dim() < 3 or not x.shape[1]:
        return None
    places = x.dim() - 2
    side = max(1, int((SIZE / x.shape[1]) ** (1 / places) + 1e-6))
    return _POOL[places](x[sample(len(x), ROWS, 0, x.device)].float(), side).flatten(1)


def _mean(x: Tensor, real: Tensor) -> Tensor:
    """The mean (samples, channels) over the real positions of each sample of ``x`` (samples, …, channels)."""
    x, real = x.flatten(1, -2).float(), real.view(len(x), -1, 1).float()
    return (x * real).sum(1) / real.sum(1).clamp(min=1)


class SampleSketch:
    """A sketch of whole samples of one layer's input, and the novelty of this step's samples under it."""

    def __init__(self) -> None:
        self.window: InputSketch | None = None
        self.age = 0  # steps since the window began
        self.seen: list[Tensor] = []  # samples of this step
        self.surprise: Tensor | None = None  # their novelty under the window: (sum, count)

    @property
    def due(self) -> bool:
        """Whether the window is updated with the samples of this step."""
        return self.age < DENSE or self.age % EVERY == 0

    def collect(self, x: Tensor) -> None:
        """Collect samples (n, p) of one forward pass; accumulated batches add up."""
        x = homogeneous(x)[None]
        if self.window is None or self.window.d != x.shape[-1]:
            self.window, self.age = InputSketch(x.shape[-1], RANK, BETA), 0
        self.seen.append(x)
        if self.age >= DENSE:
            if self.window.P is None:
                self.window.refresh(FLOOR)
            distance = self.window.distance(x, FLOOR)
            found = torch.stack([distance.sum(), torch.full_like(distance.sum(), distance.numel())])
            self.surprise = found if self.surprise is None else self.surprise + found

    def update(self) -> None:
        """Update the window with this step's samples."""
        if self.window is not None and self.seen and self.due:
            self.window.update(torch.cat(self.seen, 1), 1 if self.age < DENSE else EVERY)
        self.age += bool(self.seen)
        self.discard_step()

    def refresh(self) -> None:
        """Measure novelty against all samples of the window so far, from now on."""
        if self.window is not None and self.window.P is not None:
            self.window.refresh(FLOOR)

    def discard_step(self) -> None:
        """Drop what was collected in this step."""
        self.seen, self.surprise = [], None

    def clear(self) -> None:
        """Start a new window."""
        self.window, self.age = None, 0

    def state_dict(self) -> State:
        """Tensors and numbers; without a window before the first sample."""
        return {"age": self.age} | (
            {} if self.window is None else {"d": self.window.d, "window": self.window.state_dict()}
        )

    def load_state_dict(self, state: State, device: torch.device) -> None:
        """Continue from a saved state."""
        self.clear()
        self.age = state["age"]
        if "d" in state:
            self.window = InputSketch(state["d"], RANK, BETA)
            self.window.load_state_dict(state["window"], device)
