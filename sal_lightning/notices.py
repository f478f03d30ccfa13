"""Warnings about what is not protected, each given once, with cause and cure."""

import warnings
from collections.abc import Collection

FORWARD = "forward"
NO_STEP = "no step"
UNREACHED = "unreached"
ELEMENTS = "elements"
AVERAGE = "average"


class Notices:
    """Warnings that were given; several layers, and several fits, may share them."""

    def __init__(self) -> None:
        self.given = set[str]()

    def _once(self, kind: str, text: str) -> None:
        if kind not in self.given:
            self.given.add(kind)
            warnings.warn(text, stacklevel=3)

    def own_forward(self, names: Collection[str]) -> None:
        """Layers whose forward pass does not multiply the input by the weight."""
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
        if UNREACHED in self.given:
            return  # which is why
        first = sorted(names)[:5]
        listed = ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
        self._once(
            ELEMENTS,
            f"{share:.0%} of the trained weights are protected one by one, which holds them less well than the "
            f"directions of a layer's input do: {listed}. It happens to recurrent layers, parametrized and free "
            "parameters, and layers that are not called themselves. Where it can be, build these parts from Linear, "
            "convolution, Embedding or MultiheadAttention modules that are called.",
        )
