"""Which rule covers which parameter, and consolidations that can be rolled back."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from sal_lightning import layers, torch_compile
from sal_lightning.adapters import Adapter
from sal_lightning.adapters import find as find_adapters
from sal_lightning.layers import plain_name
from sal_lightning.logit_adjustment import LogitAdjustment
from sal_lightning.pull import Pull
from sal_lightning.rule_set import RuleSet
from sal_lightning.rules.base import Rule, State
from sal_lightning.rules.element import ElementRule
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.input_rule import InputRule
from sal_lightning.rules.lora import LoraARule, LoraBRule, known_energy
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.rules.tensor import TensorRule
from sal_lightning.settings import Settings

RECURRENT = 4  # factor on the strength of recurrent layers


def owned(model: nn.Module, optimizer: Optimizer | None) -> dict[str, nn.Parameter]:
    """The parameters to cover, by name: trainable ones that belong to the optimizer."""
    learning = {plain_name(n): p for n, p in model.named_parameters() if learns(p)}
    if optimizer is None:
        return learning
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {n: p for n, p in learning.items() if id(p) in ids}


def learns(p: nn.Parameter) -> bool:
    """Whether a parameter requires a gradient and is not lazy."""
    return p.requires_grad and not nn.parameter.is_lazy(p)


def check(model: nn.Module, optimizer: Optimizer | None) -> None:
    """Check that a model and its optimizer can be protected.

    Raises:
        TypeError: ``model`` is not a module, or ``optimizer`` is not an optimizer.
        ValueError: the model has no trainable parameter, the optimizer belongs to another model, parameters were
            flattened by FSDP1, or the model was compiled with ``fullgraph=True``.
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
    torch_compile.check(model)
    if any(type(p).__name__ == "FlatParameter" or hasattr(p, "_fsdp_flattened") for p in parameters):
        raise ValueError("Expected whole parameters or those of FSDP2 (fully_shard), got flattened ones of FSDP1.")


def rules_for(
    settings: Settings, parameters: dict[str, nn.Parameter], model: nn.Module, other: list[str] | None = None
) -> list[Rule]:
    """One rule for each layer of a supported type, and one for all other parameters together.

    The names of layers with a custom forward pass are appended to ``other``.
    """
    if settings.protection == "tensor":
        return [TensorRule(parameters)]
    left = dict(parameters)
    rules: list[Rule] = [*layer_rules(settings, left, model, other)] if settings.protection == "subspace" else []
    return rules + ([ElementRule(left, settings.strength)] if left else [])


def layer_rules(
    settings: Settings, left: dict[str, nn.Parameter], model: nn.Module, other: list[str] | None = None
) -> list[InputRule]:
    """One rule for each layer of a supported type; removes their parameters from ``left``."""
    rules: list[InputRule] = []
    adapters = {part: adapter for adapter in find_adapters(model) for part in (adapter.A, adapter.B)}
    names = {id(p): n for n, p in left.items()}
    for layer in layers.find(model, other):
        if names.get(id(layer.weight)) not in left:
            if shared := other_use(layer, rules):
                rules.append(_rule(layer._replace(bias=None), shared, settings))
            continue
        adapter = adapters.get(layer.module) if len(layer.modules) == layer.groups == 1 else None
        # A bias of B acts on all inputs, whatever A is: the element rule holds it.
        if layer.bias is not None and (adapter is not None or names.get(id(layer.bias)) not in left):
            layer = layer._replace(bias=None)
        taken = [names[id(p)] for p in (layer.weight, layer.bias) if p is not None]
        rules.append(_rule(layer, {name: left.pop(name) for name in taken}, settings, adapter, rules))
    return rules


def other_use(layer: layers.Layer, rules: Iterable[InputRule]) -> dict[str, nn.Parameter]:
    """The layer's weight by its name if a rule covers it for another use: as an embedding's table, or a head's weight.

    Then both rules act on it, one after the other: rows of the table are held for known tokens, and input directions of
    the head for rows that present data do not look up. Sparse gradients of a table have no directions.
    """
    table = isinstance(layer.module, nn.Embedding)
    shared = {name: p for r in rules for name, p in r.parameters.items() if p is layer.weight}
    known = [r for r in rules if shared.keys() & r.parameters.keys()]
    sparse = any(getattr(m, "sparse", False) for m in (*layer.modules, *(m for r in known for m in r.modules)))
    return shared if len(known) == 1 and isinstance(known[0], EmbeddingRule) is not table and not sparse else {}


def _rule(
    layer: layers.Layer,
    names: dict[str, nn.Parameter],
    settings: Settings,
    adapter: Adapter | None = None,
    others: Iterable[Rule] = (),
) -> InputRule:
    """The rule of one layer; of B of an adapter, the one of its A is among ``others``."""
    if isinstance(layer.module, nn.Embedding):
        return EmbeddingRule(layer.name, names, layer.module, settings.strength, layer.modules)
    if adapter is not None and layer.module is adapter.A:
        return LoraARule(layer, names, settings, adapter)
    A = next((r for r in others if isinstance(r, LoraARule) and r.adapter == adapter), None)
    if A is not None:
        return LoraBRule(layer, names, settings, A)
    # A change of a recurrent weight acts in every time step of a sequence.
    times = RECURRENT if isinstance(layer.module, nn.RNNBase | nn.RNNCellBase) else 1
    return SubspaceRule(layer, names, settings, times)


def _identical(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


class Coverage(RuleSet):
    """The rules of all trainable parameters; grows when parameters are unfrozen, added or materialized."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, settings: Settings) -> None:
        super().__init__(
            model,
            Pull(settings.pull),
            LogitAdjustment(1.0 if settings.protection == "tensor" else settings.absent_prior),
        )
        self.optimizer, self.settings = optimizer, settings
        # The part of a loaded state whose parameters are not trainable yet.
        self.waiting: dict[str, dict[str, State]] = {"rules": {}, "input_rules": {}}
        self.other: list[str] = []  # layers with a custom forward pass, as `grow` last found them
        self.gone: list[Rule] = []  # rules whose parameters were replaced, since `grow` was last called
        self._learning: list[nn.Parameter] | None = None  # trainable parameters at the last `grow`

    def grow(self) -> list[InputRule] | None:
        """Cover parameters that are new or replaced; returns the new input rules, None if nothing has changed."""
        learning = [p for p in self._given() if learns(p)]
        if self._learning is not None and _identical(learning, self._learning):
            return None
        self._learning = learning
        self._drop_replaced()
        covered = {id(p) for rule in self.rules for p in rule.parameters.values()}
        new = {n: p for n, p in owned(self.model, self.optimizer).items() if id(p) not in covered}
        self.other = []
        rules = rules_for(self.settings, new, self.model, self.other) if new else []
        input_rules = [rule for rule in rules if isinstance(rule, InputRule)]
        if self.settings.protection == "element":  # these input rules only feed change detection
            known = {rule.name for rule in self.input_rules}
            input_rules = [e for e in layer_rules(self.settings, dict(new), self.model) if e.name not in known]
        self._take_in(rules, input_rules)
        self._tie()
        self._inherit()
        self.pull.cover(self.rules)
        self.adjustment.cover(self.input_rules)
        return input_rules

    def _given(self) -> Iterable[nn.Parameter]:
        if self.optimizer is None:
            return self.model.parameters()
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def _drop_replaced(self) -> None:
        """Drop rules whose parameters left the model; their state waits for new parameters of the same name."""
        there = {id(p) for p in self.model.parameters()}
        self.gone = [r for r in self.all_rules() if any(id(p) not in there for p in r.parameters.values())]
        for rule in self.gone:
            self.waiting["rules" if rule in self.rules else "input_rules"][rule.name] = rule.state_dict()
        self.rules = [rule for rule in self.rules if rule not in self.gone]
        self.input_rules = [rule for rule in self.input_rules if rule not in self.gone]

    def use_element_rule(self, lost: Iterable[Rule]) -> None:
        """Replace these rules, whose inputs cannot be collected, by the element rule."""
        for rule in list(lost):
            self.rules.remove(rule)
            self.input_rules = [r for r in self.input_rules if r is not rule]
            tied = {name for other in self.rules for name in other.parameters}
            if left := {name: p for name, p in rule.parameters.items() if name not in tied}:
                self._take_in([ElementRule(left, self.settings.strength)], [])
        self._tie()
        self.pull.cover(self.rules)
        self.adjustment.cover(self.input_rules)

    def accept_replaced_weights(self) -> None:
        """Accept the weights of parameters that ``grow`` found to be replaced."""
        replaced = {rule.name for rule in self.gone}
        for rule in self.rules:
            if rule.name in replaced:
                rule.accept_weights()
                self.pull.set_anchor(rule.parameters)

    def kept(self) -> set[str]:
        """Names of parameters with loaded held state that is not applied until they are trainable."""
        names = [plain_name(name) for name, _ in self.model.named_parameters(remove_duplicate=False)]
        held = {name: state["memory"] for name, state in self.waiting["rules"].items() if state.get("memory")}
        # A bias may be held by the element rule.
        weights = [name for name in names if not name.endswith("bias")]
        whole = {name for name in weights if (name.rpartition(".")[0] or "model") in held}
        single = held.get("element", {}) | next(
            (r.later["memory"] for r in self.rules if isinstance(r, ElementRule)), {}
        )
        return whole | (set(names) & set(single))

    def unbound(self) -> list[str]:
        """Those of ``kept()`` that are trainable: another type of rule, or another optimizer, covers them."""
        learning = {plain_name(n) for n, p in self.model.named_parameters(remove_duplicate=False) if learns(p)}
        return sorted(self.kept() & learning)

    def state_dict(self) -> State:
        """The state of each rule, by its name."""
        return {
            "elements": [name for name, grain in self.grains().items() if grain == "element"],
            "rules": {rule.name: rule.state_dict() for rule in self.rules} | self.waiting["rules"],
            "input_rules": {r.name: r.state_dict() for r in self.input_rules if r not in self.rules}
            | self.waiting["input_rules"],
            "pull": self.pull.state_dict(),
            "adjustment": self.adjustment.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state.

        New parameters, outputs of a layer and rows of a table are allowed; nothing of them is held.

        Raises:
            ValueError: the state belongs to another model, or has parts that are missing in this one.
        """
        elements = set(state["elements"])
        names = {plain_name(name) for name, _ in self.model.named_parameters(remove_duplicate=False)}
        # Decided by the weight, which comes first: a bias that was frozen then is not in the state.
        self.use_element_rule([r for r in self.rules if r.grain == "subspace" and next(iter(r.parameters)) in elements])
        for rule in [r for r in self.rules if isinstance(r, SubspaceRule) and r.layer.bias is not None]:
            held = state["rules"].get(rule.name, {}).get("memory", {}).get("U")
            if held is not None and held.shape[1] == rule.inputs:
                self._free_bias(rule)
        rules, given = {rule.name for rule in self.rules}, set(state["rules"])
        parts = ((plain_name(name) or "model", module) for name, module in self.model.named_modules())
        known = {*rules, "element", *names, *(name for name, module in parts if any(True for _ in module.parameters()))}
        if missing := (given - known) | (elements - names):
            raise ValueError(
                f"Expected the state of the same model; these parts of it are missing here: {sorted(missing)}. "
                "Parts may be added to a model, not taken away."
            )
        self.waiting = {key: dict(state[key]) for key in self.waiting}
        self._resume(self.rules, self.input_rules)
        self._inherit()
        self.pull.cover(self.rules)
        self.pull.load_state_dict(state["pull"])
        self.adjustment.cover(self.input_rules)
        self.adjustment.load_state_dict(state["adjustment"])

    def _inherit(self) -> None:
        """Copy the statistics of a layer's inputs from an existing adapter of the layer to a new one."""
        new = {r for r in self.rules if isinstance(r, LoraARule) and not r.used}
        live = {r.name: r.state_dict() for r in self.rules if new and isinstance(r, LoraARule) and r not in new}
        for rule in new:
            layer = rule.name.rpartition(".")[0]
            known = [s for name, s in (live | self.waiting["rules"]).items() if name.rpartition(".")[0] == layer]
            if known:
                rule.inherit(max(known, key=known_energy))
        for B in self.rules:
            if isinstance(B, LoraBRule) and B.A in new:
                B.consolidate()

    def _free_bias(self, rule: SubspaceRule) -> None:
        """Move a bias that was frozen in the saved state to the element rule, which holds nothing of it."""
        bias = {name: p for name, p in rule.parameters.items() if p is rule.layer.bias}
        weight = {name: p for name, p in rule.parameters.items() if name not in bias}
        alone = _rule(rule.layer._replace(bias=None), weight, self.settings)
        alone.alone = rule.alone
        self.rules = [alone if r is rule else r for r in self.rules]
        self.input_rules = [alone if e is rule else e for e in self.input_rules]
        self._take_in([ElementRule(bias, self.settings.strength)], [])
        self._tie()

    def _take_in(self, rules: list[Rule], input_rules: list[InputRule]) -> None:
        for rule in rules:
            rule.alone = self.optimizer is None
            mine = next((r for r in self.rules if isinstance(r, ElementRule) and r.name == rule.name), None)
            if mine is None:
                self.rules.append(rule)
            else:
                mine.adopt(rule.parameters)
        self.input_rules += input_rules
        self._resume(rules, input_rules)

    def _tie(self) -> None:
        """Record which rules share a weight that is an embedding's table and a head's weight."""
        tables = {next(iter(rule.parameters)): rule for rule in self.input_rules if isinstance(rule, EmbeddingRule)}
        for rule in self.input_rules:
            rule.uses = 1
        for head in self.input_rules:
            if isinstance(head, SubspaceRule):
                head.table = tables.get(next(iter(head.parameters)))
                if head.table is not None:
                    head.uses = head.table.uses = 2

    def _resume(self, rules: Iterable[Rule], input_rules: Iterable[Rule]) -> None:
        watching = (rule for rule in input_rules if rule not in self.rules)
        for kind, chosen in (("rules", rules), ("input_rules", watching)):
            for rule in chosen:
                if rule.name in self.waiting[kind]:
                    rule.load_state_dict(self.waiting[kind].pop(rule.name))


class Before(NamedTuple):
    """What one holder had before a provisional consolidation."""

    memory: Any
    window: State


class ProvisionalHold:
    """A consolidation that can be rolled back: made when a change is suspected, kept when it is confirmed.

    While a change is suspected its batches are collected in new windows, which become those of the new data when the
    change is confirmed. Novelty is measured against the windows of before.
    """

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        # None while no change is suspected.
        self.before: dict[Rule | Pull | LogitAdjustment, Before] | None = None

    def consolidate(self) -> None:
        """Consolidate and start new windows when a suspicion begins; does nothing while it lasts."""
        if self.before is None:
            self.before = {one: Before(one.memory, one.window_state()) for one in self.coverage.holders()}
            self.coverage.consolidate()
            for one in self.before:
                one.clear()
            self._set_references()

    def roll_back(self) -> None:
        """Restore the memories and windows of before the suspicion."""
        for one, (memory, window) in (self.before or {}).items():
            one.memory = memory
            one.load_window(window)
            if isinstance(one, Rule):
                one.rolled_back()
        self._end()

    def confirm(self) -> None:
        """Keep what was consolidated, and the windows that were started then."""
        for rule in self.coverage.all_rules().difference(self.before or {}):  # they serve change detection only
            rule.clear()
        self._end()

    def rebind(self) -> None:
        """Assign the memories and windows to the current rules, after rules were replaced or adopted parameters."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> State | None:
        """The memory and the window of each holder by its name."""
        if self.before is None:
            return None
        return {one.name: {"memory": one.pack(memory)} | window for one, (memory, window) in self.before.items()}

    def load_state_dict(self, state: State | None) -> None:
        """Continue from a saved state."""
        self._end()
        if state is not None:
            known = {one: state[one.name] for one in self.coverage.holders() if one.name in state}
            self.before = {one: Before(one.unpack(kept["memory"]), kept) for one, kept in known.items()}
            self._set_references()

    def _set_references(self) -> None:
        """Measure novelty against the windows of before."""
        before = self.before or {}
        for rule in self.coverage.input_rules:
            if rule in before:
                rule.set_reference(before[rule].window)

    def _end(self) -> None:
        self.before = None
        for rule in self.coverage.input_rules:
            rule.set_reference(None)
