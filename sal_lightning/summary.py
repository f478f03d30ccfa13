"""Plain-text reports of what is held and why: a sentence, a short form and a summary of several lines."""

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sal_lightning.communication import CommunicationLayer
from sal_lightning.consolidation_reasons import Counts
from sal_lightning.rules.base import Rule
from sal_lightning.rules.element import ElementRule
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.lora import LoraARule, LoraBRule
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.rules.tensor import TensorRule
from sal_lightning.settings import Settings, Trigger
from sal_lightning.stability import StabilitySpectrum, spectrum
from sal_lightning.user_warnings import listed

WIDTH, LABEL = 100, 11  # columns of a line, and of its label
LINES = 2  # lines of a row; longer rows are truncated
EVENTS, WARNINGS = 6, 4  # number of the latest ones that are shown
FOLLOWED = (  # in the order of Counts: singular and plural
    ("change of the data was detected", "changes of the data were detected"),
    ("consolidation was requested", "consolidations were requested"),
    ("consolidation was made", "consolidations were made"),
)
WAYS: dict[type[Rule], str] = {
    SubspaceRule: "by directions of the input",
    LoraARule: "by directions of the input",
    LoraBRule: "by directions of the input",
    EmbeddingRule: "by tokens",
    ElementRule: "weight by weight",
    TensorRule: "tensor by tensor",
}


class Account(NamedTuple):
    """The data of a verdict.

    Args:
        held: the spectrum at the next update.
        counts: numbers of consolidations, by reason.
        steps: number of optimizer steps.
        trigger: ``consolidate_on``, if it is known.
        suspects: whether a change is suspected and a provisional hold is in force.
        waits: whether this is a loaded state that no training has used yet.
    """

    held: StabilitySpectrum
    counts: Counts
    steps: int
    trigger: Trigger | Literal["unknown"] = "unknown"
    suspects: bool = False
    waits: bool = False


def verdict(a: Account) -> str:
    """How much is held and why, or why nothing is held and what to do about it.

    >>> verdict(Account(StabilitySpectrum(63, 0, 37), Counts(found=2), 800))
    'Holds 63 % of the weights; 2 changes of the data were detected.'
    >>> verdict(Account(StabilitySpectrum(0, 0, 100), Counts(), 500, "novelty"))
    'Nothing is held: no change of the data was detected in 500 steps. Call consolidate() where the data change.'
    """
    if a.waits:
        what = f", with {_number(sum(a.counts), 'consolidation')}," if any(a.counts) else ""
        return f"Nothing is held yet: the state of {_steps(a)}{what} is loaded when the next training begins."
    if a.suspects:
        return f"{_holds(a.held)}; a change of the data is suspected, and {_followed(a.counts) or 'not confirmed yet'}."
    return f"{_holds(a.held)}; {_followed(a.counts)}." if any(a.counts) else f"Nothing is held: {_why(a)}"


def short(a: Account) -> str:
    """The verdict as a short phrase, for ``repr``.

    >>> short(Account(StabilitySpectrum(63, 0, 37), Counts(found=2), 800))
    '2 changes detected, 63 % of the weights held'
    """
    if a.waits:
        return f"the state of {_steps(a)} is loaded when the next training begins"
    if not any(a.counts):
        doubt = ", a change suspected" if a.suspects else ""
        return f"nothing consolidated in {_steps(a)}{doubt}" if a.steps else "not trained yet"
    found, asked = a.counts.found, a.counts.asked + a.counts.unknown
    parts = [_number(found, "change") + " detected"] if found else []
    parts += [_number(asked, "consolidation")] if asked else []
    return ", ".join([*parts, _share(a.held, "held")])


def text(
    account: Account,
    layers: Sequence[CommunicationLayer],
    settings: Settings,
    warnings: Mapping[str, str],
    shares: Mapping[str, Tensor],
) -> str:
    """The verdict, followed by labelled rows with its details.

    Args:
        account: the data of the verdict.
        layers: the layers of one training, one per optimizer.
        settings: the settings of all layers.
        warnings: the warnings given so far, by kind.
        shares: (held², whole²) of the gradient ("suppressed") and the update ("effect") when last measured.
    """
    lines = [*textwrap.wrap(verdict(account), WIDTH), ""]
    chosen = f"consolidate_on={settings.consolidate_on!r}, protection={settings.protection!r}"
    rows = {"Settings": f"{chosen}, strength={settings.strength:g}, pull={settings.pull:g}"}
    if layers and not account.waits:
        rows |= {
            "Training": _training(layers),
            "Held": f"{_bands(account.held)}, at the next update",
            "Observed": f"{_bands(_observed(layers))}, by the movement of the weights",
            "Weights": _weights(layers),
            "Events": _events(layers),
            "Held back": _held_back(layers, shares),
            "Pulled": _pulled(layers, settings),
            "Left out": "; ".join(_left_out(layers, settings)) or "none of the trained weights",
        }
        if absent := sum(layer.collector.coverage.adjustment.absent() for layer in layers):
            what = _number(absent, "output") + " of the last layer, targets before and not now"
            rows["Absent"] = f"{what}: they count as rare in the gradient of the layers before it"
    for label, row in rows.items():
        lines += _row(label, row, LINES)
    return "\n".join([*lines, *_warnings(warnings)])


def _pulled(layers: Sequence[CommunicationLayer], settings: Settings) -> str:
    if not settings.pull or settings.protection == "tensor":
        return "nothing, since " + ("protection='tensor'" if settings.pull else "pull=0")
    pulls = [layer.collector.coverage.pull for layer in layers]
    if causes := [pull.problem for pull in pulls if pull.problem]:
        return f"nothing, since the importance of weights could not be measured ({causes[0]})"
    pulled, total = sum(pull.bytes for pull in pulls), sum(layer.memory()["model"] for layer in layers)
    if not any(pull.parameters for pull in pulls):
        return "nothing, since LoRA adapters are held by directions alone"
    if not pulled:
        return "nothing yet: no weight has an anchor"
    return f"{percent(100 * pulled / total)} of the weights, towards their values at the last consolidation"


# --- the sentence ---


def percent(x: float) -> str:
    """Formats whole percent; values strictly between 0 and 1, or 99 and 100, are not rounded to 0 or 100.

    >>> percent(0.0), percent(0.2), percent(62.7), percent(99.9), percent(100.0)
    ('0 %', 'under 1 %', '63 %', 'over 99 %', '100 %')
    """
    if 0 < x < 1:
        return "under 1 %"
    return "over 99 %" if 99 < x < 100 else f"{x:.0f} %"


def _share(held: StabilitySpectrum, verb: str = "") -> str:
    weights = f"of the weights {verb}".rstrip()
    if not held.neutral:
        return f"{percent(held.protected)} {weights}"
    if not held.protected:
        return f"{percent(held.neutral)} {weights} in part"
    return f"{percent(held.protected)} {weights} firmly and {percent(held.neutral)} in part"


def _holds(held: StabilitySpectrum) -> str:
    if not held.protected + held.neutral:
        return "Holds almost nothing: all weights are free to move"
    return f"Holds {_share(held)}"


def _followed(counts: Counts) -> str:
    return " and ".join(f"{n:,} {ways[n > 1]}" for n, ways in zip(counts, FOLLOWED, strict=True) if n)


def _why(a: Account) -> str:
    if not a.steps:
        return "no training step was taken yet."
    taken, cure = _steps(a), "Call consolidate() to do so now."
    if isinstance(a.trigger, int):
        return f"the first consolidation is at step {a.trigger}, and this is step {a.steps}. {cure}"
    if a.trigger == "fit":
        return f"what was learned in {taken} is consolidated when the next fit begins. {cure}"
    if a.trigger is None:
        return f"neither consolidate() nor remember() was called in {taken}. Call one of them, or set consolidate_on."
    if a.trigger == "novelty":
        return f"no change of the data was detected in {taken}. Call consolidate() where the data change."
    return f"nothing was consolidated in {taken}."


def _steps(a: Account) -> str:
    return _number(a.steps, "step")


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


# --- the rows ---


def _row(label: str, content: str, lines: int) -> list[str]:
    return textwrap.wrap(
        content,
        WIDTH,
        initial_indent=label.ljust(LABEL),
        subsequent_indent=" " * LABEL,
        max_lines=lines,
        placeholder=" …",
        break_on_hyphens=False,
    )


def _training(layers: Sequence[CommunicationLayer]) -> str:
    parts = [f"{_number(layer.step, 'step')} of {type(layer.optimizer).__name__}" for layer in layers]
    skipped = sum(layer.skips for layer in layers)
    return ", ".join(parts) + (f"; {_number(skipped, 'step')} skipped by the loss scaler" if skipped else "")


def _bands(bands: StabilitySpectrum) -> str:
    return ", ".join(f"{percent(share)} {band}" for band, share in bands._asdict().items())


def _observed(layers: Sequence[CommunicationLayer]) -> StabilitySpectrum:
    counts = [layer.collector.analyzer.bands() for layer in layers if layer.collector.analyzer is not None]
    return spectrum(torch.stack(counts).sum(0) if counts else torch.zeros(3))


def _weights(layers: Sequence[CommunicationLayer]) -> str:
    """The number of weights that each type of rule covers, and of layers."""
    ways = defaultdict[str, list[Rule]](list)
    for rule in (rule for layer in layers for rule in layer.rules if rule.learns):
        ways[WAYS[type(rule)]].append(rule)
    total = sum(rule.trained() for rules in ways.values() for rule in rules)
    parts = []
    for way, rules in ways.items():
        if isinstance(rules[0], SubspaceRule | EmbeddingRule):
            where = _number(len(rules), "layer")
        else:
            where = listed([name for rule in rules for name, p in rule.parameters.items() if p.requires_grad])
        parts.append(f"{percent(100 * sum(rule.trained() for rule in rules) / total)} {way} ({where})")
    return f"{total:,} in training: {', '.join(parts)}" if total else "none in training"


def _events(layers: Sequence[CommunicationLayer]) -> str:
    """The latest consolidations, each with its evidence."""
    events = sorted({(step, layer.evidence.get(step, "")) for layer in layers for step in layer.events})
    if not events:
        return "none"
    shown = [f"step {step:,}" + (f" ({why})" if why else "") for step, why in events[-EVENTS:]]
    earlier = len(events) - len(shown)
    return (f"{earlier} earlier, " if earlier else "") + ", ".join(shown)


def _held_back(layers: Sequence[CommunicationLayer], shares: Mapping[str, Tensor]) -> str:
    if not any(layer.events or layer.monitor.suspects for layer in layers):
        return "nothing yet: nothing was consolidated"
    drift = torch.stack([layer.drift() for layer in layers]).sum(0)
    moved = f"the held part of the weights has moved by {percent(_root(drift))} of its size" if drift[1] > 0 else ""
    if not shares:
        return "; ".join(filter(None, ["not measured, which is done on log steps only", moved]))
    gradient, update = (percent(_root(shares[name])) for name in ("suppressed", "effect"))
    return "; ".join(
        filter(None, [f"{gradient} of the gradient and {update} of the update, when last measured", moved])
    )


def _root(squares: Tensor) -> float:
    """The square root of a ratio of two sums of squares, in percent."""
    part, whole = squares.double().tolist()
    return float(100 * (part / whole) ** 0.5) if whole > 0 else 0.0


def _left_out(layers: Sequence[CommunicationLayer], settings: Settings) -> Iterator[str]:
    """Parameters, inputs and loaded state that are neither protected nor observed."""
    parameters = {name: p for name, p in layers[0].model.named_parameters() if not nn.parameter.is_lazy(p)}
    covered = {id(p) for layer in layers for rule in layer.rules for p in rule.parameters.values()}
    frozen = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    if frozen:
        yield f"{frozen:,} frozen weights"
    if strange := [name for name, p in parameters.items() if p.requires_grad and id(p) not in covered]:
        yield f"weights that no optimizer updates: {listed(strange)}"
    if unreached := {name for layer in layers for name in layer.collector.unreached}:
        yield f"layers that were not called: {listed(unreached)}"
    if unbound := {name for layer in layers for name in layer.collector.coverage.unbound()}:
        yield f"loaded state of weights that another rule covers now: {listed(unbound)}"
    if settings.consolidate_on != "novelty":
        yield f"detection of changes, since consolidate_on={settings.consolidate_on!r}"
    elif not any(layer.collector.coverage.input_rules for layer in layers):
        yield "detection of changes, since no layer has an observed input"


def _warnings(given: Mapping[str, str]) -> list[str]:
    """The first sentences of the latest warnings."""
    shown = list(given.values())[-WARNINGS:]
    if not shown:
        return _row("Warnings", "none", 1)
    named = [("" if i else "Warnings", f"- {text.partition('. ')[0]}") for i, text in enumerate(shown)]
    lines = [line for label, row in named for line in _row(label, row, LINES)]
    earlier = len(given) - len(shown)
    return lines + (_row("", f"and {earlier} more", 1) if earlier else [])
