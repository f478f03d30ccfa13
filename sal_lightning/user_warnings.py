"""Warnings about missing protection, each given once, with its cause and remedy."""

import warnings
from collections.abc import Collection

FORWARD = "forward"
NO_STEP = "no step"
ADAPTERS = "adapters"
UNREACHED = "unreached"
ELEMENTS = "elements"
NOT_REMEMBERED = "not remembered"
CLOSED = "closed"
NO_EVENT = "no event"
TOO_FEW = "too few steps"
UNBOUND = "unbound"
NAMED = 5  # parameters named in a warning
AVERAGE = "average"
NO_PULL = "no pull"
EARLY = "early reporters"


class UserWarnings:
    """Gives warnings, each once; an instance may be shared by several layers and fits."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}  # the text of each, by its kind

    def _once(self, kind: str, text: str) -> None:
        if kind not in self.given:
            self.given[kind] = text
            warnings.warn(text, stacklevel=3)

    def own_forward(self, names: Collection[str]) -> None:
        """Modules have a custom forward pass that is not linear in the weight, or not an embedding lookup."""
        listed = ", ".join(sorted(names))
        self._once(
            f"{FORWARD} {listed}",
            f"Layers with a forward pass of their own, which changes their weight or their input, are protected weight "
            f"by weight: {listed}. Input directions do not describe such a weight. To protect them by directions, "
            "change the input or the output in another module and leave the layer a plain one.",
        )

    def other_adapters(self, kinds: Collection[str]) -> None:
        """Adapters of peft that are not LoRA's of Linears and convolutions are trained."""
        self._once(
            f"{ADAPTERS} {', '.join(sorted(kinds))}",
            f"Adapters of these kinds are not moved out of the directions of old inputs: {', '.join(sorted(kinds))}. "
            "They are protected weight by weight or by their own inputs, which is weaker than what LoRA adapters of "
            "Linear and convolution layers get. To protect them likewise, use LoraConfig on such layers.",
        )

    def no_step(self, optimizer: str, passes: int) -> None:
        """Weights change, and no step of their optimizer is observed."""
        self._once(
            NO_STEP,
            f"No optimizer step was observed in {passes} forward passes, although the weights have changed: updates of "
            f"{optimizer} are not held back. Either its step() does not run the step hooks of torch.optim.Optimizer, "
            "or something else changes these weights. Pass the optimizer whose step() is called.",
        )

    def hidden_average(self, wrapper: str) -> None:
        """A wrapper evaluates an average of the weights that its inner optimizer updates."""
        self._once(
            AVERAGE,
            f"{wrapper} evaluates an average of the weights that its inner optimizer updates: that average is not "
            "protected. Use an optimizer that averages by itself, with train_mode in its param_groups, such as "
            "AdamWScheduleFree.",
        )

    def unreached(self) -> None:
        """There are gradients, but no layer was called."""
        self._once(
            UNREACHED,
            "No layer was called in the first steps, although there are gradients: weights that are not held yet will "
            "be protected weight by weight, and changes of the data are not detected. This happens if weights are used "
            "without calling their layer (torch.func.functional_call, torch.nn.functional), or if a copy of the model "
            "is run. Call the layers of the model that the optimizer trains.",
        )

    def elements(self, share: float, names: Collection[str]) -> None:
        """Most weights belong to no layer of a supported type."""
        if not self.given.keys().isdisjoint({UNREACHED, NOT_REMEMBERED}):
            return  # these warnings already state the cause
        self._once(
            ELEMENTS,
            f"{share:.0%} of the trained weights are protected one by one, which is weaker than protection by the "
            f"directions of a layer's input: {listed(names)}. This applies to parametrized and free parameters, and to "
            "layers that are not called themselves. If possible, build these parts from Linear, convolution, "
            "Embedding, recurrent or MultiheadAttention modules that are called.",
        )

    def not_remembered(self) -> None:
        """``remember()`` ran the model, but no layer was called."""
        self._once(
            NOT_REMEMBERED,
            "remember() called no layer: protection is weight by weight, which is weaker than protection by the "
            "directions of a layer's input. This happens if weights are used without calling their layer "
            "(torch.func.functional_call, torch.nn.functional), or if a copy of the model is run. Call the layers of "
            "the model that is remembered; in a plain loop, pass remember() a forward function that does.",
        )

    def closed(self, strategy: str, waiting: bool) -> None:
        """Gradients cannot be masked under this strategy; ``waiting``: whether there is state of earlier fits."""
        kept = " What was learned before is kept in its state, and not used in this fit." if waiting else ""
        self._once(
            f"{CLOSED} {strategy}",
            f"{strategy} provides neither whole gradients nor whole rows of them: SALCallback protects nothing in this "
            f"fit. Use one device, DDP or ModelParallelStrategy (FSDP2).{kept}",
        )

    def no_event(self, steps: int, held: bool) -> None:
        """The loss or deeper layers jumped, but no change was detected; ``held``: whether anything is held."""
        what = "only what was consolidated before is held" if held else "nothing is held"
        self._once(
            NO_EVENT,
            f"No change of the data was detected in the {steps} steps of this fit, although the loss or what deeper "
            f"layers are given jumped: {what}, and what was learned before the jump is being overwritten. This happens "
            "if the inputs are distributed as before, for example with new labels on old inputs. Call consolidate() "
            "where the data change, or set consolidate_on='fit' and start a new fit there.",
        )

    def too_few_steps(self, every: int, steps: int) -> None:
        """The fit ended before the number of steps of ``consolidate_on``."""
        self._once(
            TOO_FEW,
            f"Nothing is held: consolidate_on={every} is more than the {steps} steps taken until the end of this fit, "
            "and another fit of the same length would not reach it. Steps are counted over several fits. Set "
            "consolidate_on to a smaller number, or call consolidate().",
        )

    def no_pull(self, cause: str) -> None:
        """The importance of weights could not be measured."""
        self._once(
            NO_PULL,
            f"The pull is off: the importance of weights could not be measured ({cause}). Without it more is "
            "forgotten, although input directions and single weights are still held. The measurement is a second "
            "backward pass. It does not work with reentrant checkpointing (pass use_reentrant=False), with a compiled "
            "model that donates buffers (set torch._functorch.config.donated_buffer = False) or with FSDP2, and it "
            "requires that the layer that runs last is of a supported type, neither parametrized nor an embedding. "
            "Set pull=0 to train without the pull.",
        )

    def early_reporters(self, names: Collection[str]) -> None:
        """Reporters of a Hugging Face Trainer run before the callback whose values they would report."""
        several = ", ".join(map(repr, names))
        self._once(
            EARLY,
            f"The values of SAL are not reported to {several}: the Trainer runs the reporters of report_to before its "
            "other callbacks. They are in state.log_history. To report them, set report_to=[] and pass the reporters "
            "after this callback: callbacks=[SALTrainerCallback(), *get_reporting_integration_callbacks("
            f"[{several}])], with that function of transformers.integrations.",
        )

    def unbound(self, names: Collection[str]) -> None:
        """Parameters were trained although their loaded state matched no rule."""
        self._once(
            UNBOUND,
            f"The loaded state of these parameters was not used, although they were trained in this fit: "
            f"{listed(names)}. It was saved by another rule than covers them now: a layer was replaced or "
            "parametrized, parts of it were frozen, or the order of the optimizers differs. Build model and optimizers "
            "as they were when the state was saved, or protect the model again with remember().",
        )


def listed(names: Collection[str]) -> str:
    """The first of these names, and how many more there are.

    >>> listed("gfedcba")
    'a, b, c, d, e and 2 more'
    """
    first = sorted(names)[:NAMED]
    return ", ".join(first) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
