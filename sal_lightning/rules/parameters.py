"""The parameters that one rule protects, as far as they live in this process."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sal_lightning.distributed import local


class ParameterGroup:
    """Named parameters on one device."""

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        self.name, self.parameters = name, parameters

    @property
    def device(self) -> torch.device:
        """Where the parameters live now."""
        return next(iter(self.parameters.values())).device

    @property
    def learns(self) -> bool:
        """Whether any of the parameters is being trained now."""
        return any(p.requires_grad for p in self.parameters.values())

    def version_of_weights(self) -> int:
        """Changes with every change of the weights, but for those made through ``.data``."""
        return sum(p._version for p in self.parameters.values())

    def weights_exchanged(self, versions: int) -> None:
        """The optimizer itself put other weights in place, which changed their version by so much."""

    def weights(self) -> list[Tensor]:
        """The parameters' values, as far as they live in this process; the same memory."""
        return [local(p.detach()) for p in self.parameters.values()]

    def gradients(self) -> list[Tensor | None]:
        """Likewise, of each parameter that has one."""
        return [None if p.grad is None else local(p.grad) for p in self.parameters.values()]

    def numel(self) -> int:
        """Weights under this rule."""
        return sum(p.numel() for p in self.parameters.values())

    def trained(self) -> int:
        """Those of them that are being trained now."""
        return sum(p.numel() for p in self.parameters.values() if p.requires_grad)


def squares(X: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all entries, in single precision."""
    dense = [x.coalesce().values() if x.is_sparse else x for x in X]
    return torch.stack([torch.linalg.vector_norm(x).float() for x in dense]).square().sum()
