"""The parameters that one rule protects: their shards in this process."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sal_lightning.distributed import local


class ParameterGroup:
    """Named parameters on one device."""

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        self.name, self.parameters = name, parameters
        self.uses = 1  # number of rules of the weight: 2 if it is the table of an embedding and the weight of a head

    @property
    def device(self) -> torch.device:
        """Current device of the parameters."""
        return next(iter(self.parameters.values())).device

    @property
    def learns(self) -> bool:
        """Whether any of the parameters is being trained now."""
        return any(p.requires_grad for p in self.parameters.values())

    def version_of_weights(self) -> int:
        """Sum of the parameters' version counters: it changes with every in-place change, except through ``.data``."""
        return sum(p._version for p in self.parameters.values())

    def weights_exchanged(self, versions: int) -> None:
        """Account for weights exchanged by the optimizer, which raised the version counters by ``versions``."""

    def weights(self) -> list[Tensor]:
        """The local part of each parameter's value, sharing its storage."""
        return [local(p.detach()) for p in self.parameters.values()]

    def gradients(self) -> list[Tensor | None]:
        """The local part of each parameter's gradient; None where there is none."""
        return [None if p.grad is None else local(p.grad) for p in self.parameters.values()]

    def numel(self) -> int:
        """Number of weights that this rule covers."""
        return sum(p.numel() for p in self.parameters.values())

    def trained(self) -> int:
        """Number of these weights that are being trained; each of two rules of a tied weight counts half of it."""
        return sum(self.counted(p) for p in self.parameters.values() if p.requires_grad)

    def counted(self, p: nn.Parameter) -> int:
        """Number of weights that a parameter counts as here: half of them if it is tied, see ``uses``."""
        return p.numel() // (self.uses if p.dim() > 1 else 1)


def squares(X: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all entries, in single precision."""
    dense = [x.coalesce().values() if x.is_sparse else x for x in X]
    return torch.stack([torch.linalg.vector_norm(x).float() for x in dense]).square().sum()
