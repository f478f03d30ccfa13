"""The adapters that peft has added to a model: those of LoRA, and the names of other kinds."""

from typing import Any, NamedTuple

from torch import nn

_BY_MODULE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Its matrices are not applied to the input of the wrapped module.
_INDIRECT = ("ParamWrapper",)
_DORA = "lora_magnitude_vector"  # held with the adapter, see ``dora``


class Adapter(NamedTuple):
    """One adapter of one layer: ``y = W x + c B A x``."""

    name: str
    layer: Any  # the layer of peft, which is called with x
    A: Any  # its module, with a weight (r, in)
    B: Any  # (out, r)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The module whose calls have x as input.

        It is not A for a Linear: DoRA calls A with the identity matrix too, and dropout precedes A.
        """
        return (self.layer,) if isinstance(self.A, nn.Linear) else (self.A,)


def find(model: nn.Module) -> list[Adapter]:
    """The LoRA adapters of Linears and convolutions; peft need not be imported."""
    found = []
    for module in model.modules():
        A, B = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if isinstance(A, nn.ModuleDict) and isinstance(B, nn.ModuleDict) and type(module).__name__ not in _INDIRECT:
            adapters = (Adapter(name, module, A[name], B[name]) for name in A if name in B)
            found += [one for one in adapters if isinstance(one.A, _BY_MODULE) and isinstance(one.B, _BY_MODULE)]
    return found


def others(model: nn.Module) -> set[str]:
    """Peft's class names of the layers that have trained adapters of other kinds."""
    known = {id(p) for adapter in find(model) for m in (adapter.A, adapter.B) for p in m.parameters()}
    found = set[str]()
    for module in model.modules():
        parts = getattr(module, "adapter_layer_names", ())
        names = ((name.partition(".")[0], p) for name, p in module.named_parameters()) if parts else ()
        if any(part in parts and part != _DORA and p.requires_grad and id(p) not in known for part, p in names):
            found.add(type(module).__name__)
    return found
