"""Which rule covers which parameter, and which layers are listened to."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from sal_lightning import compiling, layers
from sal_lightning.layers import plain_name
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.element import Element
from sal_lightning.rules.subspace import Subspace
from sal_lightning.rules.tensor import Tensor
from sal_lightning.rules.tokens import Tokens
from sal_lightning.settings import Settings

Eye = Subspace | Tokens  # a rule that looks at its layer's input


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
        TypeError: no model, or an optimizer that is none.
        ValueError: nothing to train, an optimizer of another model, parameters that FSDP1 has flattened, a model
            compiled with ``fullgraph=True``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected model to be a torch.nn.Module, got {type(model).__name__}.")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"Expected optimizer to be a torch.optim.Optimizer or None, got {optimizer!r}.")
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        raise ValueError("Expected model to have parameters that require a gradient, got none.")
    ids = {id(p) for p in parameters}
    if optimizer is not None and not any(id(p) in ids for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("Expected optimizer to own parameters of model, got one that owns none of them.")
    compiling.check(model)
    if any(type(p).__name__ == "FlatParameter" or hasattr(p, "_fsdp_flattened") for p in parameters):
        raise ValueError("Expected whole parameters or those of FSDP2 (fully_shard), got flattened ones of FSDP1.")


def rules_for(settings: Settings, parameters: dict[str, nn.Parameter], model: nn.Module) -> list[Rule]:
    """One rule a layer where the layer is understood, one for all other parameters together."""
    if settings.protection == "tensor":
        return [Tensor(parameters)]
    left = dict(parameters)
    rules: list[Rule] = [*layer_rules(settings, left, model)] if settings.protection == "subspace" else []
    return rules + ([Element(left, settings.strength)] if left else [])


def layer_rules(settings: Settings, left: dict[str, nn.Parameter], model: nn.Module) -> list[Eye]:
    """One rule a layer that is understood; takes its parameters out of ``left``."""
    rules: list[Eye] = []
    names = {id(p): n for n, p in left.items()}
    for layer in layers.find(model):
        if names.get(id(layer.weight)) not in left:
            continue
        if layer.bias is not None and names.get(id(layer.bias)) not in left:
            layer = layer._replace(bias=None)
        taken = [names[id(p)] for p in (layer.weight, layer.bias) if p is not None]
        rules.append(_rule(layer, {name: left.pop(name) for name in taken}, settings))
    return rules


def _rule(layer: layers.Layer, names: dict[str, nn.Parameter], settings: Settings) -> Eye:
    if isinstance(layer.module, nn.Embedding):
        return Tokens(layer.name, names, layer.module, settings.strength)
    return Subspace(layer, names, settings.strength, settings.recall, settings.share)


class Coverage:
    """The rules of all parameters that learn now; grows when parameters are thawed, added or given a shape."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, settings: Settings) -> None:
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.rules: list[Rule] = []
        self.eyes: list[Eye] = []  # what listens to forward passes
        # Of a loaded state, what belongs to parameters that do not learn yet.
        self.waiting: dict[str, dict[str, State]] = {"rules": {}, "eyes": {}}
        self._learning = -1  # how many parameters learned when they were last covered

    def grow(self) -> list[Eye] | None:
        """Cover what began to learn; returns the new eyes, None if it is the same as before."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        learning = sum(learns(p) for group in groups for p in group["params"])
        if learning == self._learning:
            return None
        self._learning = learning
        covered = {id(p) for rule in self.rules for p in rule.parameters.values()}
        new = {n: p for n, p in owned(self.model, self.optimizer).items() if id(p) not in covered}
        rules = rules_for(self.settings, new, self.model) if new else []
        eyes = [rule for rule in rules if isinstance(rule, Eye)]
        if self.settings.protection == "element":  # single weights have no inputs: layers are watched, not protected
            known = {eye.name for eye in self.eyes}
            eyes = [e for e in layer_rules(self.settings, dict(new), self.model) if e.name not in known]
        self._take_in(rules, eyes)
        return eyes

    def hand_over(self, lost: Iterable[Rule]) -> None:
        """Protect what these rules cannot follow weight by weight."""
        for rule in list(lost):
            self.rules.remove(rule)
            self.eyes = [eye for eye in self.eyes if eye is not rule]
            self._take_in([Element(rule.parameters, self.settings.strength)], [])

    def consolidate(self) -> None:
        """Add what was seen to what is held."""
        for rule in self.rules:
            rule.consolidate()

    def clear(self) -> None:
        """Look at what comes with fresh eyes."""
        for rule in self.everybody():
            rule.clear()

    @property
    def device(self) -> torch.device:
        """Where the model lives now."""
        return next(self.model.parameters()).device

    def grains(self) -> dict[str, str]:
        """The grain at which each covered parameter is protected."""
        return {name: rule.grain for rule in self.rules for name in rule.parameters}

    def everybody(self) -> set[Rule]:
        """Rules and eyes."""
        return {*self.rules, *self.eyes}

    def state_dict(self) -> State:
        """Of each rule and eye, by its name."""
        return {
            "elements": [name for name, grain in self.grains().items() if grain == "element"],
            "rules": {rule.name: rule.state_dict() for rule in self.rules} | self.waiting["rules"],
            "eyes": {e.name: e.state_dict() for e in self.eyes if e not in self.rules} | self.waiting["eyes"],
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where another stood.

        Raises:
            ValueError: a state of another model.
        """
        elements = set(state["elements"])
        self.hand_over([r for r in self.rules if r.grain == "subspace" and set(r.parameters) <= elements])
        rules, given = {rule.name for rule in self.rules}, set(state["rules"])
        known = {*rules, "element", *(plain_name(name) or "model" for name, _ in self.model.named_modules())}
        if strange := (given - known) | (rules - given - {"element"}):
            raise ValueError(f"Expected the state of the same model; these parts are not in both: {sorted(strange)}.")
        self.waiting = {key: dict(state[key]) for key in self.waiting}
        self._resume(self.rules, self.eyes)

    def _take_in(self, rules: list[Rule], eyes: list[Eye]) -> None:
        for rule in rules:
            rule.alone = self.optimizer is None
            mine = next((r for r in self.rules if isinstance(r, Element) and r.name == rule.name), None)
            if mine is None:
                self.rules.append(rule)
            else:
                mine.adopt(rule.parameters)
        self.eyes += eyes
        self._resume(rules, eyes)

    def _resume(self, rules: Iterable[Rule], eyes: Iterable[Rule]) -> None:
        watching = (eye for eye in eyes if eye not in self.rules)
        for kind, chosen in (("rules", rules), ("eyes", watching)):
            for rule in chosen:
                if rule.name in self.waiting[kind]:
                    rule.load_state_dict(self.waiting[kind].pop(rule.name))
