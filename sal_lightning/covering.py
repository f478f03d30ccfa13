"""Which rule covers which parameter."""

from torch import nn
from torch.optim import Optimizer

from sal_lightning import layers
from sal_lightning.layers import plain_name
from sal_lightning.rules.base import Rule
from sal_lightning.rules.element import Element
from sal_lightning.rules.subspace import Subspace
from sal_lightning.rules.tensor import Tensor
from sal_lightning.rules.tokens import Tokens
from sal_lightning.settings import Settings


def owned(model: nn.Module, optimizer: Optimizer | None) -> dict[str, nn.Parameter]:
    """The parameters to cover, by name: those that learn now, and that the optimizer owns."""
    learning = {plain_name(n): p for n, p in model.named_parameters() if learns(p)}
    if optimizer is None:
        return learning
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {n: p for n, p in learning.items() if id(p) in ids}


def learns(p: nn.Parameter) -> bool:
    """Whether a parameter is trained now, and has a shape yet."""
    return p.requires_grad and not nn.parameter.is_lazy(p)


def check(model: nn.Module, optimizer: Optimizer | None) -> None:
    """Refuse what cannot be protected.

    Raises:
        ValueError: nothing to train, an optimizer of another model, parameters that FSDP1 has flattened.
    """
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        raise ValueError("Expected model to have parameters that require a gradient, got none.")
    ids = {id(p) for p in parameters}
    if optimizer is not None and not any(id(p) in ids for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("Expected optimizer to own parameters of model, got one that owns none of them.")
    if any(type(p).__name__ == "FlatParameter" or hasattr(p, "_fsdp_flattened") for p in parameters):
        raise ValueError("Expected whole parameters or those of FSDP2 (fully_shard), got flattened ones of FSDP1.")


def rules_for(settings: Settings, parameters: dict[str, nn.Parameter], model: nn.Module) -> list[Rule]:
    """One rule a layer where the layer is understood, one for all other parameters together."""
    if settings.protection == "tensor":
        return [Tensor(parameters)]
    left = dict(parameters)
    rules: list[Rule] = [*layer_rules(settings, left, model)] if settings.protection == "subspace" else []
    return rules + ([Element(left, settings.strength)] if left else [])


def layer_rules(settings: Settings, left: dict[str, nn.Parameter], model: nn.Module) -> list[Subspace | Tokens]:
    """One rule a layer that is understood; takes its parameters out of ``left``."""
    rules: list[Subspace | Tokens] = []
    names = {id(p): n for n, p in left.items()}
    for layer in layers.find(model):
        if names.get(id(layer.weight)) not in left:
            continue
        if layer.bias is not None and names.get(id(layer.bias)) not in left:
            layer = layer._replace(bias=None)
        taken = [names[id(p)] for p in (layer.weight, layer.bias) if p is not None]
        rules.append(_rule(layer, {name: left.pop(name) for name in taken}, settings))
    return rules


def _rule(layer: layers.Layer, names: dict[str, nn.Parameter], settings: Settings) -> Subspace | Tokens:
    if isinstance(layer.module, nn.Embedding):
        return Tokens(layer.name, names, layer.module, settings.strength)
    return Subspace(layer, names, settings.strength, settings.recall, settings.share)
