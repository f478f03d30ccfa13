"""Warnings about what is not protected, each given once, with cause and cure."""

import warnings
from collections.abc import Collection

FORWARD = "forward"
NO_STEP = "no step"
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


class UserWarnings:
    """Warnings that were given; several layers, and several fits, may share them."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}  # the text of each, by its kind

    def _once(self, kind: str, text: str) -> None:
        if kind not in self.given:
            self.given[kind] = text
            warnings.warn(text, stacklevel=3)

    def own_forward(self, names: Collection[str]) -> None:
        """Modules whose forward pass does not multiply their input by the weight, or look it up there."""
        listed = ", ".join(sorted(names))
        self._once(
            f"{FORWARD} {listed}",
            f"Layers with a forward pass of their own, which changes their weight or their input, are protected weight "
            f"by weight: {listed}. Directions of an input say nothing about such a weight. To be protected by them, "
            "change the input or the output in another module, and leave the layer a plain one.",
        )

    def no_step(self, optimizer: str, passes: int) -> None:
        """Weights move, and no step of their optimizer is seen."""
        self._once(
            NO_STEP,
            f"No optimizer step was seen in {passes} forward passes, though the weights have moved: what {optimizer} "
            "does is not held back. Either its step() does not run the step hooks of torch.optim.Optimizer, or "
            "something else moves these weights. Hand over the optimizer whose step() is called.",
        )

    def hidden_average(self, wrapper: str) -> None:
        """A wrapper averages the weights, and its inner optimizer does not know."""
        self._once(
            AVERAGE,
            f"{wrapper} evaluates an average of the weights that the optimizer inside of it steps: what is held is not "
            "held in that average. Use an optimizer that averages by itself, with train_mode in its param_groups, such "
            "as AdamWScheduleFree.",
        )

    def unreached(self) -> None:
        """Gradients come, and no layer is called."""
        self._once(
            UNREACHED,
            "No layer was reached in the first steps, though there are gradients: what is not held yet will be "
            "protected weight by weight, and a change of the data is not noticed. It happens where weights are used "
            "without calling their layer (torch.func.functional_call, torch.nn.functional), and where a copy of the "
            "model is run. Call the layers of the model that the optimizer trains.",
        )

    def elements(self, share: float, names: Collection[str]) -> None:
        """Most weights have no layer that is understood."""
        if not self.given.keys().isdisjoint({UNREACHED, NOT_REMEMBERED}):
            return  # which is why
        self._once(
            ELEMENTS,
            f"{share:.0%} of the trained weights are protected one by one, which holds them less well than the "
            f"directions of a layer's input do: {listed(names)}. It happens to parametrized and free parameters, and "
            "to layers that are not called themselves. Where it can be, build these parts from Linear, convolution, "
            "Embedding, recurrent or MultiheadAttention modules that are called.",
        )

    def not_remembered(self) -> None:
        """``remember()`` ran the model, and no layer was called."""
        self._once(
            NOT_REMEMBERED,
            "remember() reached no layer: what it keeps is held weight by weight, which holds less well than the "
            "directions of a layer's input do. It happens where weights are used without calling their layer "
            "(torch.func.functional_call, torch.nn.functional), and where a copy of the model is run. Call the layers "
            "of the model that is remembered; in a plain loop give remember() a forward that does.",
        )

    def closed(self, strategy: str, waiting: bool) -> None:
        """Gradients cannot be held back under this strategy; ``waiting``: and something was learned before."""
        kept = " What it learned before is kept in its state, and plays no part in this fit." if waiting else ""
        self._once(
            f"{CLOSED} {strategy}",
            f"{strategy} hands out neither whole gradients nor whole rows of them: SALCallback holds nothing back in "
            f"this fit. Use one device, DDP or ModelParallelStrategy (FSDP2).{kept}",
        )

    def no_event(self, steps: int, held: bool) -> None:
        """The loss or deeper layers jumped, and no change of the data was found; ``held``: something is from before."""
        what = "only what was consolidated before is held" if held else "nothing is held"
        self._once(
            NO_EVENT,
            f"No change of the data was found in the {steps} steps of this fit, although the loss or what deeper "
            f"layers are given jumped: {what}, and what was learned before the jump is being overwritten. It happens "
            "where the inputs look as before, as with new labels on old inputs. Call consolidate() where the data "
            "changes, or set consolidate_on='fit' and begin a new fit there.",
        )

    def too_few_steps(self, every: int, steps: int) -> None:
        """The number of steps between consolidations was not reached."""
        self._once(
            TOO_FEW,
            f"Nothing is held: consolidate_on={every} is more than the {steps} steps that were taken until the end of "
            "this fit, and another one as long would not reach it. Steps are counted on over several fits. Set "
            "consolidate_on to a smaller number, or call consolidate().",
        )

    def no_pull(self, cause: str) -> None:
        """Nobody can say how much the outputs depend on each weight."""
        self._once(
            NO_PULL,
            f"The pull is off: how much the outputs depend on each weight could not be measured ({cause}). What is "
            "held is held by directions of the inputs and single weights alone, which forgets more. It is measured by "
            "a second backward pass, which reentrant checkpointing does not allow (pass use_reentrant=False), nor a "
            "compiled model that gives memory away (set torch._functorch.config.donated_buffer = False), nor FSDP2; "
            "and only where the layer that runs last is a known one, neither parametrized nor a table of embeddings. "
            "Set pull=0 to do without.",
        )

    def unbound(self, names: Collection[str]) -> None:
        """Parameters learned while what a state holds of them had no rule that could take it."""
        self._once(
            UNBOUND,
            f"What the loaded state holds of these parameters was not used, although they were trained in this fit: "
            f"{listed(names)}. It was saved by a rule that they do not have now: a layer was replaced or parametrized, "
            "parts of it were frozen, or the optimizers stand in another order. Build model and optimizers as they "
            "were when it was saved, or protect the model anew by remember().",
        )


def listed(names: Collection[str]) -> str:
    """The first of these names, and how many more there are.

    >>> listed("gfedcba")
    'a, b, c, d, e and 2 more'
    """
    first = sorted(names)[:NAMED]
    return ", ".join(first) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
